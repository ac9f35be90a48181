"""What `lorif-hf estimate` prints."""

import io

import pytest
import torch
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel

from lorif_hf.errors import ConfigError
from lorif_hf.estimating.costs import PRESETS
from lorif_hf.estimating.tables import Machine, duration, estimate_table, machine_of


def gpt2():
    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config(n_layer=2))


def printed(machine, count=10_000, batch_size=2):
    table, notes = estimate_table(gpt2(), "mine", count, 64, machine, batch_size)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    lines = console.export_text().splitlines()
    return {line.split()[1]: line for line in lines if line.startswith("│")}, notes


def test_where_everything_fits_nothing_is_marked():
    lines, notes = printed(Machine(1e12, 1 << 50, 1 << 50))
    assert list(lines) == list(PRESETS)
    assert not any("!" in line for line in lines.values())
    assert notes[0].endswith("target_modules='all' takes it") and len(notes) == 2
    assert notes[1].startswith("Memory in all: the model in float32 (") and "a batch of 2 (about " in notes[1]
    assert notes[1].endswith("Times are for 1e+12 operations a second.")


def test_what_does_not_fit_is_marked_and_what_would_is_said():
    lines, notes = printed(Machine(1e12, 2 * 10**9, 10**8))
    assert "!" in lines["default"] and "!" in lines["logra"]
    assert notes[2].startswith("! More than there is (2.0 GB of memory and 100.0 MB of disk): default, ")
    assert notes[3].startswith("What fits, with the best quality that is expected: InfluenceConfig(")


def test_a_smaller_batch_is_what_would_fit_where_it_would():
    lines, notes = printed(Machine(1e12, 3 * 10**9, None), batch_size=1000)
    assert "!" in lines["default"]
    assert notes[3].startswith("What fits: the default, with batch_size=")
    rows = int(notes[3].split("=")[1].rstrip("."))
    assert "!" not in printed(Machine(1e12, 3 * 10**9, None), batch_size=rows)[0]["default"]
    assert "!" in printed(Machine(1e12, 3 * 10**9, None), batch_size=rows + 1)[0]["default"]


def test_a_model_that_is_too_large_alone_is_told():
    _, notes = printed(Machine(1e12, 10**8, None))
    assert notes[3].startswith("The model alone takes ") and notes[3].endswith("or shorter examples.")


def test_what_is_not_known_fits():
    lines, notes = printed(Machine(1e12, None, None))
    assert not any("!" in line for line in lines.values()) and len(notes) == 2


def test_a_machine_is_this_one_or_what_is_said():
    assert machine_of(1e14, "80GB", "1TB") == Machine(1e14, 80 * 10**9, 10**12)
    here = machine_of(None, None, None)
    assert here.speed > 1e6 and here.disk > 0
    with pytest.raises(ConfigError, match="flops must be operations a second, like 1e14, got -1"):
        machine_of(-1, None, None)
    with pytest.raises(ConfigError, match=r"disk must be a number of bytes or a size like .2GB., got 'large'"):
        machine_of(1.0, None, "large")


@pytest.mark.parametrize(
    "seconds, shown",
    [(0, "0 s"), (0.2, "<1 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"), (86400 * 2, "2 d"), (1e7, "116 d")],
)
def test_durations_are_said_as_people_say_them(seconds, shown):
    assert duration(seconds) == shown

"""Bars and messages: shown and hidden by the switches that a user of the Hugging Face libraries knows."""

import logging
import subprocess
import sys
from contextlib import contextmanager

import datasets
import pytest
import transformers
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from lorif_hf.progress import bars_are_hidden, progress, without_bars


@pytest.fixture
def shown(monkeypatch):
    """Bars as they are outside of the tests, which switch all of them off."""
    theirs = sys.modules["huggingface_hub.utils.tqdm"]  # the attribute of that name is a class
    monkeypatch.setattr(theirs, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(theirs, "progress_bar_states", {})
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)


@contextmanager
def switched(off, on):
    off()
    try:
        yield
    finally:
        on()


@contextmanager
def verbosity(level):
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(level)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


SWITCHES = {
    "huggingface_hub": lambda: switched(disable_progress_bars, enable_progress_bars),
    "its group": lambda: switched(lambda: disable_progress_bars("lorif_hf"), lambda: enable_progress_bars("lorif_hf")),
    "datasets": lambda: switched(datasets.disable_progress_bars, datasets.enable_progress_bars),
    "transformers": lambda: switched(
        transformers.logging.disable_progress_bar, transformers.logging.enable_progress_bar
    ),
    "verbosity": lambda: verbosity(logging.ERROR),
    "ours": without_bars,
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_of_any_library_hides_our_bars(shown, switch):
    with progress(3, "Work", "steps") as bar:
        assert not bar.disable
    with SWITCHES[switch](), progress(3, "Work", "steps") as bar:
        assert bar.disable
    with progress(3, "Work", "steps") as bar:
        assert not bar.disable


def test_what_is_not_hidden_inside_stays_hidden_by_who_hides_it_outside(shown):
    with without_bars(), without_bars(False):
        assert bars_are_hidden()
    with without_bars(False):
        assert not bars_are_hidden()


def test_messages_follow_the_verbosity_of_transformers():
    ours = logging.getLogger("lorif_hf.building.builder")
    assert ours.isEnabledFor(logging.WARNING)
    with verbosity(logging.ERROR):
        assert not ours.isEnabledFor(logging.WARNING) and ours.isEnabledFor(logging.ERROR)
    with verbosity(logging.INFO):
        assert ours.isEnabledFor(logging.INFO)
    assert not ours.isEnabledFor(logging.INFO) and ours.isEnabledFor(logging.WARNING)


def test_a_level_of_our_own_goes_before_that_of_transformers():
    library = logging.getLogger("lorif_hf")
    try:
        library.setLevel(logging.INFO)
        with verbosity(logging.ERROR):
            assert logging.getLogger("lorif_hf.hub.store").isEnabledFor(logging.INFO)
    finally:
        library.setLevel(logging.NOTSET)


def test_nothing_is_loaded_to_ask_for_switches():
    code = "import sys, lorif_hf.progress as p; p.bars_are_hidden(); print('datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]

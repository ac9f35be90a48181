"""`lorif-hf info`: what an index is, to people and to programs, whoever made it."""

import json
import re

import pytest
from terminal import CONTROLS, ESCAPES, MARKUP, REPO, differences, documented, edit, refused, run

from lorif_hf import InfluenceIndex


def test_info_says_what_the_index_is(saved):
    out = run("info", saved / "index").stdout
    rows = dict(re.findall(r"│ (\S.*?) +│ (\S.*?) +│", out))
    loaded = InfluenceIndex.from_pretrained(saved / "index")
    assert rows["model"] == "GPT2LMHeadModel" and rows["examples"] == "5" and rows["commit"] == "(a local folder)"
    assert rows["layers"] == "8, the first is transformer.h.0.attn.c_attn" and rows["objective"] == "causal-lm"
    assert rows["bytes per example"] == f"{loaded.bytes_per_example:,.0f}"
    assert {name: str(value) for name, value in loaded.config.to_dict().items()}.items() <= rows.items()


def test_info_as_json_says_the_same(saved):
    said = json.loads(run("info", saved / "index", "--json").stdout)
    loaded = InfluenceIndex.from_pretrained(saved / "index")
    assert said["config"] == loaded.config.to_dict() and said["num_examples"] == 5 and said["lds"] is None
    assert said["layers"] == [module.name for module in loaded.manifest.modules] and said["repo_id"] is None
    assert differences(said, documented("info")) == []
    assert said["bytes_per_example"] == loaded.bytes_per_example and said["coverage"] == loaded.coverage.share


def test_info_of_an_index_on_the_hub_downloads_no_factors(hub, saved):
    commit = InfluenceIndex.from_pretrained(saved / "index").push_to_hub(REPO, token=hub.token)
    hub.reset_log()
    assert json.loads(run("info", REPO, "--json").stdout)["commit"] == commit.oid
    assert hub.bytes_served(".parquet") == 0 and not any(
        "factors/" in (request.path_in_repo or "") for request in hub.requests
    )


@pytest.mark.parametrize("name", [ESCAPES, MARKUP], ids=["escapes", "markup"])
def test_a_hostile_name_is_printed_as_it_is_or_not_at_all(index, name):
    edit(index, lambda manifest: manifest["model"].update(name=name))
    shown, as_json = run("info", index, COLUMNS="400").output, run("info", index, "--json").stdout
    assert not CONTROLS.search(shown + as_json) and as_json.isascii() and json.loads(as_json)["model"] == name
    assert name == ESCAPES or name in shown


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_hostile_manifest_cannot_write_to_the_terminal_through_an_error(index, command):
    """A message names the file; the file's name came with the index."""
    name = "\x1b]0;owned\x07[red]curvature"
    edit(index, lambda manifest: manifest["curvature"].update(file=name))
    message = refused(command, index) if command == "verify" else run(command, index).output
    assert not CONTROLS.search(message)
    if command == "verify":
        assert "[red]curvature" in message

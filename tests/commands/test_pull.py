"""`lorif-hf pull`: an index in a folder, the same as on the Hub."""

import pytest
from terminal import REPO, refused, run

from lorif_hf import InfluenceIndex


def test_pull_brings_the_index_of_a_revision_and_may_be_called_again(hub, saved, tmp_path, monkeypatch):
    InfluenceIndex.from_pretrained(saved / "index").push_to_hub(REPO, token=hub.token, private=True, revision="v1")
    for _ in range(2):
        result = run("pull", REPO, tmp_path / "here", "--revision", "v1", "--token", hub.token)
        assert result.exit_code == 0 and result.stdout == f"{tmp_path / 'here'}\n"
    pulled = InfluenceIndex.from_pretrained(tmp_path / "here")
    pulled.verify()
    assert pulled.manifest == InfluenceIndex.from_pretrained(saved / "index").manifest
    monkeypatch.chdir(tmp_path)
    assert run("pull", REPO, "--revision", "v1", "--token", hub.token).stdout == "my-index\n"
    assert (tmp_path / "my-index" / "influence_config.json").is_file()


@pytest.mark.parametrize("there", ["file", "folder of something else"])
def test_a_place_that_is_taken_is_told_before_anything_is_downloaded(hub, saved, tmp_path, there):
    InfluenceIndex.from_pretrained(saved / "index").push_to_hub(REPO, token=hub.token)
    hub.reset_log()
    if there == "file":
        (tmp_path / "place").write_text("x")
    else:
        (tmp_path / "place").mkdir()
        (tmp_path / "place" / "thesis.tex").write_text("x")
    assert str(tmp_path / "place") in refused("pull", REPO, tmp_path / "place")
    assert not hub.requests

"""`lorif-hf verify`: good is said, what is damaged is named."""

import json

import pytest
from terminal import REPO, differences, documented, refused, run

from lorif_hf import InfluenceIndex


def test_verify_is_content_with_a_good_index_here_and_on_the_hub(hub, saved):
    InfluenceIndex.from_pretrained(saved / "index").push_to_hub(REPO, token=hub.token, private=True)
    for where, environment in ((saved / "index", {}), (REPO, {"HF_TOKEN": hub.token})):
        result = run("verify", where, **environment)
        assert result.exit_code == 0 and result.stdout == "Every file is as it was written.\n"


@pytest.mark.parametrize("damage", ["flip", "delete"])
@pytest.mark.parametrize("number", range(8))
def test_verify_names_a_damaged_file(index, number, damage):
    entry = InfluenceIndex.from_pretrained(index).manifest.files[number]
    content = (index / entry.file).read_bytes()
    (index / entry.file).unlink()
    if damage == "flip":
        (index / entry.file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    message = refused("verify", index)
    assert message.startswith(f"{entry.file}: ") and "restore or download it again" in message


def test_a_program_reads_which_file_is_damaged(index):
    good = json.loads(run("verify", index, "--json").stdout)
    assert differences(good, documented("verify")) == []
    files = InfluenceIndex.from_pretrained(index).manifest.files
    assert good == {
        "intact": True,
        "files": len(files),
        "bytes": sum(entry.bytes for entry in files),
        "file": None,
        "problem": None,
    }
    (index / files[0].file).unlink()
    result = run("verify", index, "--json")
    bad = json.loads(result.stdout)
    assert result.exit_code == 1 and bad.keys() == good.keys() and not bad["intact"]
    assert bad["file"] == files[0].file and "it is missing" in bad["problem"] and bad["problem"] in result.stderr

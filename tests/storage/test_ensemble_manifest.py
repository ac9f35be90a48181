"""The manifest of an ensemble: read back as it was written, and refused where it is anything else."""

import json

import pytest

from lorif_hf.errors import IndexCorruptedError, IndexFormatError
from lorif_hf.storage.ensemble_manifest import ENSEMBLE, Member, member_of, read_ensemble, write_ensemble
from lorif_hf.storage.files import file_sha256
from lorif_hf.storage.layout import MANIFEST, signed_json


@pytest.fixture(name="folder")
def _folder(tmp_path):
    for name in ("checkpoint-2", "checkpoint-4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(name)
    return tmp_path


def written(folder):
    members = [member_of(folder, "checkpoint-2", 0.5, 2), member_of(folder, "checkpoint-4", -1e-9, None)]
    write_ensemble(folder, members)
    return members


def test_it_is_read_as_it_was_written(folder):
    members = written(folder)
    assert read_ensemble(folder) == members
    assert members[0] == Member("checkpoint-2", 0.5, file_sha256(folder / "checkpoint-2" / MANIFEST), 2)
    first = (folder / ENSEMBLE).read_bytes()
    write_ensemble(folder, members)
    assert (folder / ENSEMBLE).read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-4", ENSEMBLE]


def test_every_flipped_bit_is_found(folder):
    written(folder)
    content = (folder / ENSEMBLE).read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 4
        (folder / ENSEMBLE).write_bytes(damaged)
        with pytest.raises((IndexCorruptedError, IndexFormatError)):
            read_ensemble(folder)


def signed(where, /, **changes):
    """A manifest that vouches for itself, with other values."""
    good = {"folder": "checkpoint-2", "weight": 1.0, "sha256": file_sha256(where / "checkpoint-2" / MANIFEST)}
    values = {"format_version": "1.0", "members": [{**good, "step": 2, **changes}]}
    (where / ENSEMBLE).write_text(signed_json(values, "ensemble_sha256"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": "../checkpoint-2"}, "is no plain name of a folder"),
        ({"folder": "/etc"}, "is no plain name of a folder"),
        ({"folder": "a/b"}, "is no plain name of a folder"),
        ({"folder": ".."}, "is no plain name of a folder"),
        ({"folder": ""}, "is no plain name of a folder"),
        ({"folder": 3}, "is no plain name of a folder"),
        ({"folder": "checkpoint-2\n"}, "is no plain name of a folder"),
        ({"folder": "nowhere"}, "it is missing or cannot be read"),
        ({"weight": "1"}, "the weight of checkpoint-2 is no finite number"),
        ({"weight": True}, "the weight of checkpoint-2 is no finite number"),
        ({"weight": None}, "the weight of checkpoint-2 is no finite number"),
        ({"step": -1}, "the step of checkpoint-2 is no natural number"),
        ({"step": 1.5}, "the step of checkpoint-2 is no natural number"),
        ({"sha256": "abc"}, "the SHA-256 of checkpoint-2 is none"),
        ({"sha256": "0" * 64}, "it is another index than influence_ensemble.json says"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(folder, changes, message):
    signed(folder, **changes)
    with pytest.raises(IndexCorruptedError, match=message):
        read_ensemble(folder)


def test_unknown_fields_are_ignored_and_links_are_not_followed(folder, tmp_path_factory):
    signed(folder, later="x")
    assert len(read_ensemble(folder)) == 1
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / MANIFEST).write_text("checkpoint-2")
    (folder / "link").symlink_to(elsewhere)
    signed(folder, folder="link")
    with pytest.raises(IndexCorruptedError, match="it is a link that leads out of the index"):
        read_ensemble(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "is not JSON|has no format_version"),
        ({"members": []}, "has no format_version"),
        ({"format_version": "2.0"}, "This index has format version 2.0"),
        ({"format_version": "1.0", "members": []}, "its ensemble_sha256 is another"),
    ],
    ids=str,
)
def test_what_is_no_ensemble_is_refused(folder, values, message):
    (folder / ENSEMBLE).write_text(json.dumps(values))
    with pytest.raises((IndexFormatError, IndexCorruptedError), match=message):
        read_ensemble(folder)
    for members in ([], {}, None, [3]):
        (folder / ENSEMBLE).write_text(signed_json({"format_version": "1.0", "members": members}, "ensemble_sha256"))
        with pytest.raises(IndexCorruptedError, match="its members are no list of indices|a member is no JSON object"):
            read_ensemble(folder)
    item = {"folder": "checkpoint-2", "weight": 1, "sha256": file_sha256(folder / "checkpoint-2" / MANIFEST)}
    (folder / ENSEMBLE).write_text(signed_json({"format_version": "1.0", "members": [item, item]}, "ensemble_sha256"))
    with pytest.raises(IndexCorruptedError, match="a member is listed twice"):
        read_ensemble(folder)


def test_an_absent_or_huge_one_is_refused(folder):
    with pytest.raises(IndexFormatError, match="holds no ensemble of indices: influence_ensemble.json is missing"):
        read_ensemble(folder)
    (folder / ENSEMBLE).write_bytes(b" " * (1 << 23))
    with pytest.raises(IndexFormatError, match="no ensemble has"):
        read_ensemble(folder)
    (folder / ENSEMBLE).write_bytes(b"[" * 100_000)
    with pytest.raises(IndexFormatError, match="is not JSON"):
        read_ensemble(folder)

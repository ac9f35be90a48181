"""An index may come from anybody: whatever its files claim, loading and querying it ends in our own error.

Every hash is signed anew after the tampering, so that only the one check in question can catch it; each is tried on a
folder, on a downloaded repo and on a streamed one.
"""

import json
import os

import pytest
from tampering import REPO, SHARD, edit, query, sign

from lorif_hf import InfluenceIndex
from lorif_hf.errors import IndexCorruptedError, IndexFormatError, LorifError
from lorif_hf.storage.layout import CURVATURE, MANIFEST, signed


def test_an_index_that_nobody_tampered_with_is_read(load, folder):
    sign(folder)
    assert query(load()).indices.shape == (1, 6)


# Paths


PATHS = [
    "../secret.bin",
    "factors/../../secret.bin",
    "README.md/../../secret.bin",
    "/etc/hostname",
    "..\\secret.bin",
    "factors\\x",
    "C:/secret.bin",
    "",
    ".",
    "./README.md",
    "factors//x",
    "factors/./x",
    "a\0b",
    "\ud800",
]


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
@pytest.mark.parametrize("where", ["curvature", "shards", "examples", "tokenizer"])
def test_a_path_that_leads_out_is_refused_before_anything_is_opened(folder, path, where):
    (folder.parent / "secret.bin").write_bytes(b"secret")

    def change(values):
        entry = {"file": path, "bytes": 6, "sha256": "0" * 64}
        if where == "tokenizer":
            values["tokenizer"] = [entry]
        else:
            (values[where] if where == "curvature" else values[where][0])["file"] = path

    edit(folder, change)
    with pytest.raises(IndexCorruptedError, match="is not a plain path inside the index") as caught:
        InfluenceIndex.from_pretrained(folder)
    assert caught.value.file == MANIFEST


@pytest.mark.parametrize("path", ["../secret.bin", "README.md/../../secret.bin", "/etc/hostname"])
def test_a_path_that_leads_out_is_refused_every_way(load, folder, path):
    edit(folder, lambda values: values["shards"][1].update(file=path))
    with pytest.raises(IndexCorruptedError, match="is not a plain path inside the index"):
        load()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "/".join(["x"] * 3000)], ids=["300", "5000", "deep"])
def test_a_name_that_no_system_takes(load, folder, name):
    edit(folder, lambda values: values["shards"][1].update(file=name))
    with pytest.raises(LorifError):
        query(load())


@pytest.mark.parametrize("what", ["a file", "a folder"])
@pytest.mark.parametrize("name", [SHARD, CURVATURE, "data/train-00002.parquet"])
def test_a_link_that_leads_out_is_refused(folder, tmp_path, what, name):
    path = folder / name if what == "a file" else (folder / name).parent
    os.rename(path, tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(IndexCorruptedError, match="it is a link that leads out of the index") as caught:
        query(InfluenceIndex.from_pretrained(folder))
    assert (folder / caught.value.file).resolve().is_relative_to(tmp_path / "outside")
    with pytest.raises(IndexCorruptedError, match="leads out"):
        InfluenceIndex.from_pretrained(folder).save_pretrained(tmp_path / "copy")


@pytest.mark.parametrize("way", ["save_pretrained", "push_to_hub"])
def test_a_card_that_is_a_link_to_a_secret_does_not_get_out(hub, folder, tmp_path, way):
    (tmp_path / "secret").write_text("---\n{}\n---\nthe private key of this machine")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "secret")
    index = InfluenceIndex.from_pretrained(folder)
    try:
        if way == "save_pretrained":
            index.save_pretrained(tmp_path / "copy")
        else:
            index.push_to_hub(REPO, token=hub.token)
    except LorifError:
        return
    card = (tmp_path / "copy/README.md").read_text() if way == "save_pretrained" else ""
    card = card or hub.files(REPO, "dataset")["README.md"].decode()
    assert "private key" not in card


# The manifest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"num_examples": 6', '"num_examples": NaN'),
        ('"num_examples": 6', '"num_examples": 1e999'),
        ('"num_examples": 6', '"num_examples": -6'),
        ('"num_examples": 6', '"num_examples": 6.0'),
        ('"num_examples": 6', '"num_examples": true'),
        ('"num_examples": 6', '"num_examples": 1' + "0" * 5000),
        ('"num_examples": 6', '"num_examples": 6, "num_examples": 7'),
        ('"damping": 0.5', '"damping": NaN'),
        ('"damping": 0.5', '"damping": Infinity'),
        ('"damping": 0.5', '"damping": 1e999'),
        ('"damping": 0.5', '"damping": 0'),
        ('"damping": 0.5', '"damping": -1'),
        ('"damping": 0.5', '"damping": "0.5"'),
        ('"seed": 0', '"seed": -1'),
        ('"seed": 0', '"seed": 0, "surprise": 1'),
        ('"factor_rank": 1', '"factor_rank": 0'),
        ('"factor_rank": 1', '"factor_rank": [1]'),
        ('"dtype": "bfloat16"', '"dtype": "int8"'),
        ('"dtype": "bfloat16"', '"dtype": ["bfloat16"]'),
        ('"dtype": "bfloat16"', '"dtype": "load"'),
        ('"target_modules": "all-linear"', '"target_modules": "(" '),
        ('"target_modules": "all-linear"', '"target_modules": {"a": 1}'),
        ('"target_modules": "all-linear"', '"target_modules": "' + "(" * 20000 + '"'),
        ('"shards": [', '"shards": 5, "x": ['),
        ('"curvature": {', '"curvature": null, "x": {'),
        ('"modules": [', '"modules": [], "x": ['),
        ('"d1": 6', '"d1": 0'),
        ('"d1": 6', '"d1": 13'),
        ('"start": 2', '"start": 3'),
        ('"rows": 2', '"rows": 0'),
        ('"format_version": "1.0"', '"format_version": 1.0'),
        ('"format_version": "1.0"', '"format_version": "1.0\\u001b[31m"'),
        ('"model": {', '"model": [], "x": {'),
        ('"extensions": {', '"extensions": [], "x": {'),
        ('"codec": null', '"codec": "zip"'),
        ('"codec": null', '"codec": ["dense"]'),
        ('"codec": null', '"codec": "dense"'),
        ('"codec": null', '"codec": "packed"'),
        ('"curvature": "low-rank"', '"curvature": "../../curvature"'),
        ('"curvature": "low-rank"', '"curvature": {"a": 1}'),
    ],
)
def test_an_impossible_value_in_the_manifest_is_our_error(folder, old, new):
    text = json.dumps(json.loads((folder / MANIFEST).read_text()))
    assert old in text
    (folder / MANIFEST).write_text(signed(text.replace(old, new, 1)))
    with pytest.raises((IndexFormatError, IndexCorruptedError)):
        InfluenceIndex.from_pretrained(folder)


@pytest.mark.parametrize(
    "module", ["os", "x\x1b[31m", "x" * 10**5, "", 5, None, True, 1.5, ["os"], {"os": 1}], ids=lambda v: repr(v)[:9]
)
@pytest.mark.parametrize("field", ["objective", "curvature", "codec"])
def test_a_kind_that_nobody_registered_is_our_error_and_what_it_names_is_not_imported(folder, field, module):
    def change(values):
        values["extensions"] = {"evil": module}
        (values if field == "objective" else values["config"])[field] = "evil"

    edit(folder, change)
    with pytest.raises((IndexFormatError, IndexCorruptedError)) as caught:
        query(InfluenceIndex.from_pretrained(folder))
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"format_version": "1.0", "config": ' + b'{"a":' * 100_000,
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf{}",
        b"",
        b"null",
        b'"' + b"x" * 1000,
        b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins.",
    ],
    ids=["nested", "nested objects", "UTF-16", "a byte-order mark", "empty", "null", "cut", "a pickle"],
)
def test_a_manifest_that_is_none(load, folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(IndexFormatError):
        load()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shard_size", 10**30),
        ("curvature_rank", 10**30),
        ("projection_factor", 10**30),
        ("seed", 10**300),
        ("factor_rank", 10**30),
    ],
)
def test_an_enormous_but_valid_config_is_read_or_refused(load, folder, field, value):
    edit(folder, lambda values: values["config"].update({field: value}))
    try:
        assert query(load()).indices.shape == (1, 6)
    except LorifError:
        pass

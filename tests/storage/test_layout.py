import copy
import hashlib
import json

import pytest
import torch

from lorif_hf.coverage import Coverage
from lorif_hf.errors import IndexCorruptedError, IndexFormatError
from lorif_hf.storage import layout
from lorif_hf.storage.layout import (
    MANIFEST,
    FactorShard,
    FileEntry,
    Manifest,
    ModuleEntry,
    Shard,
    TensorEntry,
    example_file,
    factor_file,
    read_manifest,
    signature,
    signed,
    signed_json,
)


def shards_of(kind, name, *sizes):
    header = ["e" * 64] if kind is FactorShard else []
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        kind(name(i), 100 + i, f"{i + ord(name(0)[0]):064x}", start, rows, *header)
        for i, (start, rows) in enumerate(zip(starts, sizes, strict=True))
    ]


@pytest.fixture
def manifest():
    return Manifest(
        config={"factor_rank": 1, "damping": 0.5},
        objective="causal_lm",
        model={"name": "gpt2", "revision": None},
        dataset={"name": "rows"},
        num_examples=25,
        modules=[
            ModuleEntry("a", "linear", 8, 16, 2, 4, "1" * 64),
            ModuleEntry("b", "conv1d", 8, 16, 8, 16, "2" * 64),
        ],
        shards=shards_of(FactorShard, factor_file, 10, 10, 5),
        examples=shards_of(Shard, example_file, 10, 10, 5),
        curvature=TensorEntry("curvature/curvature.safetensors", 10, "c" * 64, "e" * 64),
        build="0" * 64,
        tokenizer=[FileEntry("tokenizer/tokenizer.json", 3, "d" * 64)],
        extensions={"diagonal": "my_package.curvatures"},
    )


@pytest.fixture
def values(manifest):
    return json.loads(manifest.to_json())


def replaced(values, path, value):
    """A copy of nested JSON values with another value at `path`."""
    values = copy.deepcopy(values)
    place = values
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return values


def test_file_names_count_from_one_and_sort_in_row_order():
    assert factor_file(0) == "factors/factors-00001.safetensors"
    assert example_file(11) == "data/train-00012.parquet"
    names = [factor_file(shard) for shard in range(1200)]
    assert names == sorted(names)


def read(values):
    """A manifest of these values, which vouches for itself."""
    return Manifest.from_json(signed(json.dumps(values)))


def test_a_manifest_survives_json(manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_equal_manifests_have_equal_bytes(manifest, values):
    values["model"] = dict(reversed(values["model"].items()))
    again = read(dict(reversed(values.items())))
    assert again.to_json() == manifest.to_json()


def test_the_manifest_lists_every_file(manifest):
    tables = [*manifest.shards, *manifest.examples, *manifest.tokenizer]
    assert manifest.files == [manifest.curvature, *tables] and len(manifest.files) == 8


def test_a_newer_format_is_refused_with_the_version_to_install(values):
    with pytest.raises(IndexFormatError) as caught:
        read(replaced(values, ["format_version"], "2.3"))
    assert "format version 2.3" in str(caught.value) and "reads up to 1.x" in str(caught.value)
    assert 'pip install "lorif-hf>=2.0"' in str(caught.value)


def test_a_newer_minor_format_is_read(values):
    assert read(replaced(values, ["format_version"], "1.7")).format_version == "1.7"


@pytest.mark.parametrize(
    "version", ["", "1", "1.0.0", "v1.0", "-1.0", "1.x", " 1.0", "1.0\n", "9" * 5000 + ".0"], ids=lambda v: repr(v[:8])
)
def test_a_version_that_is_none_is_refused(values, version):
    with pytest.raises(IndexFormatError, match=r"format.version"):
        read(replaced(values, ["format_version"], version))


@pytest.mark.parametrize(
    "text",
    ["", "not json", "{", '{"format_version": "1.0"', '{"a": NaN}', '{"a": -Infinity}', "[" * 200_000],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_not_json_is_no_index(text):
    with pytest.raises(IndexFormatError, match=r"influence_config.json is not JSON .*not a lorif-hf index"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '"x"', "{}", '{"format_version": 1.0}', '{"format_version": null}']
)
def test_json_without_a_format_version_is_no_index(text):
    with pytest.raises(IndexFormatError, match="has no format_version: this is not a lorif-hf index"):
        Manifest.from_json(text)


OPTIONAL = {"dataset": {}, "tokenizer": [], "extensions": {}, "coverage": Coverage(), "alone": False}


@pytest.mark.parametrize("name", sorted(set(Manifest.__dataclass_fields__) - {"format_version"}))
@pytest.mark.parametrize("value", [None, True, 1.5, "missing"])
def test_every_field_must_be_there_with_its_type_unless_it_has_a_default(values, name, value):
    values[name] = value
    if name == "alone" and value is True:
        assert read(values).alone
        return
    if value == "missing":
        del values[name]
        if name in OPTIONAL:
            assert getattr(read(values), name) == OPTIONAL[name]
            return
    with pytest.raises(IndexCorruptedError, match=rf"influence_config.json: '{name}' must be a JSON"):
        read(values)


NATURAL = {
    "shards": ["start", "rows", "bytes"],
    "examples": ["start", "rows", "bytes"],
    "modules": ["in_features", "out_features", "d1", "d2"],
}


@pytest.mark.parametrize("where, name", [(where, name) for where, names in NATURAL.items() for name in names])
@pytest.mark.parametrize("value", [-1, 2**63, 10**30, 1.5, 10.0, "10", True, None, [1]])
def test_sizes_must_be_natural_numbers(values, where, name, value):
    with pytest.raises(IndexCorruptedError, match=rf"{where}\[0\]\.{name} must be a natural number"):
        read(replaced(values, [where, 0, name], value))


@pytest.mark.parametrize(
    "where, name", [("shards", "file"), ("examples", "sha256"), ("tokenizer", "file"), ("modules", "name")]
)
@pytest.mark.parametrize("value", [None, 3, ["x"], {}])
def test_names_must_be_strings(values, where, name, value):
    with pytest.raises(IndexCorruptedError, match=rf"{where}\[0\]\.{name} must be a string"):
        read(replaced(values, [where, 0, name], value))


@pytest.mark.parametrize("record", [None, "x", 3, [], {}, {"file": "a"}])
@pytest.mark.parametrize("where", ["shards", "examples", "modules", "tokenizer"])
def test_every_record_must_have_its_fields(values, where, record):
    with pytest.raises(IndexCorruptedError, match=rf"{where}\[0\] (must be a JSON object|lacks the field)"):
        read(replaced(values, [where, 0], record))


@pytest.mark.parametrize("path", [[], ["shards", 1], ["examples", 0], ["modules", 0], ["tokenizer", 0], ["curvature"]])
def test_an_unknown_field_is_ignored(values, manifest, path):
    assert read(replaced(values, [*path, "surprise"], {"of": ["any", "kind"]})) == manifest


def test_the_manifest_vouches_for_itself(manifest):
    """Of every byte of its text: whatever is flipped is noticed, be it white space, a key or the hash itself."""
    text = manifest.to_json().encode()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(0, len(text), (300,), generator=generator).tolist():
        for bit in (0, 3, 5):
            changed = bytearray(text)
            changed[place] ^= 1 << bit
            with pytest.raises((IndexFormatError, IndexCorruptedError)):
                Manifest.from_json(bytes(changed).decode(errors="replace"))
    without = {name: value for name, value in json.loads(text).items() if name != "manifest_sha256"}
    with pytest.raises(IndexCorruptedError, match="'manifest_sha256' must be a JSON str"):
        Manifest.from_json(json.dumps(without))


PROBLEMS = {
    "a gap in the shards": (["shards", 1, "start"], 11, "the shards do not follow one another at row 10"),
    "overlapping shards": (["shards", 1, "start"], 9, "the shards do not follow one another at row 10"),
    "a gap in the examples": (["examples", 2, "start"], 21, "the examples do not follow one another at row 20"),
    "an empty shard": (["shards", 2, "rows"], 0, "the shards do not follow one another at row 20"),
    "too few rows": (["shards", 2, "rows"], 4, "the shards hold 24 rows, num_examples says 25"),
    "too many rows": (["examples", 2, "rows"], 6, "the examples hold 26 rows, num_examples says 25"),
    "negative examples": (["num_examples"], -25, "hold 25 rows, num_examples says -25"),
    "no shards": (["shards"], [], "the shards hold 0 rows"),
    "no modules": (["modules"], [], "there is no module"),
    "a module twice": (["modules", 1, "name"], "a", "a module is listed twice"),
    "a projection that widens": (["modules", 0, "d1"], 9, "module 'a' has an impossible shape"),
    "a projection to nothing": (["modules", 0, "d2"], 0, "module 'a' has an impossible shape"),
    "a file twice": (["examples", 0, "file"], factor_file(0), "a file is listed twice"),
    "a tokenizer file twice": (["tokenizer", 0, "file"], factor_file(2), "a file is listed twice"),
    "a short checksum": (["curvature", "sha256"], "c" * 63, "the SHA-256 of curvature/curvature.safetensors is none"),
    "an upper-case checksum": (["shards", 0, "sha256"], "A" * 64, "the SHA-256 of factors/.* is none"),
}


@pytest.mark.parametrize("path, value, message", PROBLEMS.values(), ids=PROBLEMS)
def test_values_that_contradict_one_another_are_refused(values, path, value, message):
    with pytest.raises(IndexCorruptedError, match=message) as caught:
        read(replaced(values, path, value))
    assert caught.value.file == "influence_config.json"


OUTSIDE = [
    "../x",
    "a/../../x",
    "a/..",
    "/etc/passwd",
    "..",
    "\\x",
    "a\\..\\x",
    "C:/x",
    "c:x",
    "a//b",
    "./a",
    "a/",
    "",
    "a\0b",
]
UNUSABLE = [".", "\ud800"]


@pytest.mark.parametrize("path", OUTSIDE + UNUSABLE, ids=repr)
def test_a_path_that_could_leave_the_folder_is_refused(values, path):
    with pytest.raises(IndexCorruptedError, match="not a plain path inside the index"):
        layout.check_relative(path)
    for place in (["shards", 0, "file"], ["tokenizer", 0, "file"], ["curvature", "file"]):
        with pytest.raises(IndexCorruptedError, match="not a plain path inside the index"):
            read(replaced(values, place, path))


@pytest.mark.parametrize("path", ["a", "a/b.c", ".hidden", "..a/b", "tokenizer/x y.json", "ä/…"])
def test_a_plain_path_stays_inside(tmp_path, path):
    assert layout.inside(tmp_path, path) == tmp_path / path


@pytest.mark.parametrize("link, target", [("a", "../outside/secret"), ("a", "../outside"), ("a/b", "../../outside")])
def test_a_link_that_leads_out_is_refused(tmp_path, link, target):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    path = tmp_path / "index" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    for file in (link, f"{link}/secret"):
        with pytest.raises(IndexCorruptedError, match=r"it is a link that leads out of the index, to .*outside"):
            layout.inside(tmp_path / "index", file)


def test_a_link_inside_is_followed(tmp_path):
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert layout.inside(tmp_path, "link").read_text() == "x"


@pytest.mark.parametrize("blob, allowed", [("models--me--x/blobs/1", True), ("models--me--y/blobs/1", False)])
def test_a_hub_cache_may_link_to_the_blobs_of_its_own_repo_only(tmp_path, blob, allowed):
    snapshot = tmp_path / "models--me--x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / blob).parent.mkdir(parents=True)
    (tmp_path / blob).write_text("x")
    (snapshot / "file").symlink_to(tmp_path / blob)
    if allowed:
        assert layout.inside(snapshot, "file").read_text() == "x"
    else:
        with pytest.raises(IndexCorruptedError, match="leads out of the index"):
            layout.inside(snapshot, "file")


def test_a_manifest_comes_back_from_its_folder(tmp_path, manifest):
    (tmp_path / MANIFEST).write_text(manifest.to_json())
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize("wrong", ["missing", "a folder", "too large", "not UTF-8", "a link to itself"])
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, manifest, wrong, monkeypatch):
    path = tmp_path / MANIFEST
    if wrong == "a folder":
        path.mkdir()
    elif wrong == "a link to itself":
        path.symlink_to(path)
    elif wrong != "missing":
        path.write_bytes(manifest.to_json().encode() + (b"\xff" if wrong == "not UTF-8" else b""))
    if wrong == "too large":
        monkeypatch.setattr(layout, "_LARGEST_MANIFEST", 100)
    with pytest.raises((IndexFormatError, IndexCorruptedError), match=MANIFEST):
        read_manifest(tmp_path)


def test_a_text_holds_its_own_hash():
    text = signed_json({"b": 'a "own_sha256": "x" within', "a": 1}, "own_sha256")
    values = json.loads(text)
    assert list(values) == ["a", "b", "own_sha256"] and values["own_sha256"] == signature(text, "own_sha256")
    unsigned = text.replace(values["own_sha256"], "0" * 64)
    assert values["own_sha256"] == hashlib.sha256(unsigned.encode()).hexdigest()
    assert signed(unsigned, "own_sha256") == text and signature(text.replace("1", "2", 1), "own_sha256") != values["b"]
    with pytest.raises(ValueError, match="JSON compliant"):
        signed_json({"a": float("nan")}, "own_sha256")

"""Tensors and models that an index claims to have: typed errors, and nothing is believed."""

import json
import shutil

import pytest
import torch
from tampering import MODULE, REPO, SHARD, edit, edit_tensors, query, sign, upload
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceIndex
from lorif_hf.errors import IndexCorruptedError, ModelMismatchError
from lorif_hf.storage.layout import CURVATURE


# Tensors


def into(name, function):
    """A change of one tensor."""

    def change(tensors):
        tensors[name] = function(tensors[name])

    return change


def put(value):
    def function(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return function


FACTORS = {
    "more rows": lambda t: torch.cat([t, t]),
    "fewer rows": lambda t: t[:1],
    "no rows": lambda t: t[:0],
    "another width": lambda t: t[:, :, :1],
    "another rank": lambda t: t.repeat(1, 2, 1),
    "flat": lambda t: t.flatten(),
    "a scalar": lambda t: t.flatten()[0],
    "F32": lambda t: t.float(),
    "F16": lambda t: t.half(),
    "F64": lambda t: t.double(),
    "I64": lambda t: t.long(),
    "U8": lambda t: t.to(torch.uint8),
    "BOOL": lambda t: t.bool(),
    "NaN": put(float("nan")),
    "inf": put(float("inf")),
    "-inf": put(float("-inf")),
}


@pytest.mark.parametrize("tampering", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("side", ["u", "v"])
def test_factors_that_are_none(load, folder, tampering, side):
    edit_tensors(folder, SHARD, into(f"{MODULE}.{side}", tampering))
    with pytest.raises(IndexCorruptedError):
        query(load())


CURVATURES = {
    ("eigenvectors", "NaN"): put(float("nan")),
    ("eigenvectors", "inf"): put(float("inf")),
    ("eigenvectors", "inf and -inf"): lambda t: put(float("inf"))(t).index_fill(0, torch.tensor([0]), -torch.inf),
    ("eigenvectors", "F64"): lambda t: t.double(),
    ("eigenvectors", "turned"): lambda t: t.T.contiguous(),
    ("eigenvectors", "one column less"): lambda t: t[:, :-1],
    ("eigenvalues", "NaN"): put(float("nan")),
    ("eigenvalues", "inf"): put(float("inf")),
    ("eigenvalues", "negative"): put(-1.0),
    ("eigenvalues", "I64"): lambda t: t.long(),
    ("eigenvalues", "a scalar"): lambda t: t[0],
    ("eigenvalues", "two-dimensional"): lambda t: t[:, None],
    ("damping", "zero"): lambda t: t * 0,
    ("damping", "negative"): lambda t: -t,
    ("damping", "NaN"): put(float("nan")),
    ("damping", "inf"): put(float("inf")),
    ("damping", "F32"): lambda t: t.float(),
    ("damping", "a vector"): lambda t: t[None],
    ("damping", "denormal"): put(5e-324),
    ("trace", "NaN"): put(float("nan")),
    ("trace", "negative"): lambda t: -t,
}


@pytest.mark.parametrize(
    ("name", "tampering"), [(name, f) for (name, _), f in CURVATURES.items()], ids=map(" ".join, CURVATURES)
)
def test_a_curvature_that_is_none(load, folder, name, tampering):
    edit_tensors(folder, CURVATURE, into(f"{MODULE}.{name}", tampering))
    with pytest.raises(IndexCorruptedError):
        query(load())


@pytest.mark.parametrize("name", [f"{MODULE}.u", f"{MODULE}.v"])
def test_a_missing_factor_is_named(load, folder, name):
    edit_tensors(folder, SHARD, lambda tensors: tensors.pop(name))
    with pytest.raises(IndexCorruptedError, match=f"it has no tensor '{name}'") as caught:
        query(load())
    assert caught.value.file == SHARD


def test_a_missing_curvature_is_named(load, folder):
    (folder / CURVATURE).unlink()
    with pytest.raises(IndexCorruptedError, match="it is missing") as caught:
        query(load())
    assert caught.value.file == CURVATURE


def header(folder, change):
    """Change the declarations of a shard, the data stay."""
    content = (folder / SHARD).read_bytes()
    length = int.from_bytes(content[:8], "little")
    declared = json.loads(content[8 : 8 + length])
    changed = change(declared)
    head = changed if isinstance(changed, bytes) else json.dumps(declared).encode()
    (folder / SHARD).write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])
    sign(folder)


HEADERS = {
    "a shape larger than the file": lambda d: d[f"{MODULE}.u"].update(shape=[2, 6, 10**12]),
    "a shape that overflows": lambda d: d[f"{MODULE}.u"].update(shape=[2**62, 2**62, 4]),
    "a negative shape": lambda d: d[f"{MODULE}.u"].update(shape=[-2, -6, 1]),
    "a float in the shape": lambda d: d[f"{MODULE}.u"].update(shape=[2.0, 6, 1]),
    "no shape": lambda d: d[f"{MODULE}.u"].pop("shape"),
    "offsets beyond the file": lambda d: d[f"{MODULE}.u"].update(data_offsets=[0, 10**15]),
    "offsets turned": lambda d: d[f"{MODULE}.u"]["data_offsets"].reverse(),
    "offsets of another": lambda d: d[f"{MODULE}.u"].update(data_offsets=d[f"{MODULE}.v"]["data_offsets"]),
    "an unknown dtype": lambda d: d[f"{MODULE}.u"].update(dtype="EVIL"),
    "dtype a list": lambda d: d[f"{MODULE}.u"].update(dtype=[]),
    "a tensor that is none": lambda d: d.update(x=5),
    "no JSON": lambda d: b"{" * 1000,
    "nested": lambda d: b'{"a":' * 100_000,
    "a list": lambda d: b"[]",
    "metadata a number": lambda d: d.update(__metadata__=5),
    "hashes no JSON": lambda d: d["__metadata__"].update(sha256="{"),
    "hashes a list": lambda d: d["__metadata__"].update(sha256="[]"),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies(load, folder, change):
    header(folder, change)
    with pytest.raises(IndexCorruptedError) as caught:
        query(load())
    assert caught.value.file == SHARD


@pytest.mark.parametrize(
    "digest", [5, ["a"], {"a": 1}, "../../x", "/etc/hostname", "a\0b", "x" * 5000, "", None, True]
)
def test_a_hash_in_a_header_that_is_none(hub, folder, tmp_path, digest):
    def change(declared):
        hashes = json.loads(declared["__metadata__"]["sha256"])
        declared["__metadata__"]["sha256"] = json.dumps(dict.fromkeys(hashes, digest))

    header(folder, change)
    upload(hub, folder)
    index = InfluenceIndex.from_pretrained(REPO, cache_dir=tmp_path / "cache", streaming=True)
    with pytest.raises(IndexCorruptedError) as caught:
        query(index)
    assert caught.value.file == SHARD


def test_a_file_that_is_another_kind_than_the_manifest_says(load, folder):
    shutil.copyfile(folder / "data/train-00001.parquet", folder / SHARD)
    sign(folder)
    with pytest.raises(IndexCorruptedError) as caught:
        query(load())
    assert caught.value.file == SHARD


@pytest.mark.parametrize("name", ["d1", "d2", "in_features", "out_features"])
def test_a_module_of_another_shape_than_the_model(load, folder, name):
    edit(folder, lambda values: values["modules"][0].update({name: values["modules"][0][name] * 2, "d1": 1}))
    with pytest.raises((ModelMismatchError, IndexCorruptedError)):
        query(load())


# The model to load


@pytest.mark.parametrize(
    "name",
    [
        "AutoTokenizer",
        "GPT2LMHeadModel",
        "pipeline",
        "__doc__",
        "utils",
        "Trainer",
        "",
        None,
        5,
        ["AutoModelForCausalLM"],
    ],
)
def test_only_the_known_auto_classes_load_a_model(load, folder, tmp_path, name):
    make_gpt2().save_pretrained(tmp_path / "model")
    edit(folder, lambda values: values["model"].update(auto_class=name, model_class="__import__"))
    with pytest.raises(ModelMismatchError, match="which no known Auto class loads: load the model yourself"):
        load().attribute(str(tmp_path / "model"), make_rows(1))


def test_damage_is_found_by_verify_too(load, folder):
    edit_tensors(folder, SHARD, into(f"{MODULE}.u", put(float("nan"))))
    with pytest.raises(IndexCorruptedError, match="not all finite numbers"):
        load().verify()

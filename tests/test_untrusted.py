"""An index may come from anybody: whatever its files claim, loading and querying it ends in our own error.

Every hash is signed anew after the tampering, so that only the one check in question can catch it; each is tried on a
folder, on a downloaded repo and on a streamed one.
"""

import hashlib
import json
import os
import shutil

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors import safe_open
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import IndexCorruptedError, IndexFormatError, LorifError, ModelMismatchError
from lorif_hf.storage.files import file_entry, write_tensors
from lorif_hf.storage.layout import CURVATURE, MANIFEST


REPO = "user/hostile"
SHARD = "factors/factors-00002-of-00003.safetensors"
CONFIG = InfluenceConfig(projection_factor=2, shard_size=2)
MODULE = "transformer.h.0.attn.c_attn"


def edit(folder, change):
    """Change the manifest's values in place."""
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    (folder / MANIFEST).write_text(json.dumps(values))


def sign(folder):
    """Make the manifest vouch for the files as they now are."""

    def change(values):
        for entry in [values["curvature"], *values["shards"], *values["examples"], *values["tokenizer"]]:
            path = folder / entry["file"]
            if path.is_file():
                found = file_entry(folder, entry["file"])
                entry.update(bytes=found.bytes, sha256=found.sha256)
                if "header_sha256" in entry:
                    content = path.read_bytes()
                    length = int.from_bytes(content[:8], "little")
                    entry["header_sha256"] = hashlib.sha256(content[: 8 + length]).hexdigest()

    edit(folder, change)


def edit_tensors(folder, file, change):
    with safe_open(folder / file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    change(tensors)
    write_tensors(folder / file, tensors)
    sign(folder)


def upload(hub, folder, repo=REPO):
    """Put a folder into a repo as it is, as an attacker would: nothing of ours looks at it."""
    api = HfApi(token=hub.token)
    api.create_repo(repo, repo_type="dataset", exist_ok=True)
    files = [path for path in folder.rglob("*") if path.is_file()]
    added = [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files]
    api.create_commit(repo, added, commit_message="hostile", repo_type="dataset")


def query(index, **options):
    return index.attribute(make_gpt2(), make_rows(1), top_k=6, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "index"
    InfluenceIndex.build(make_gpt2(), make_rows(6), folder, config=CONFIG, example_id="name")
    return folder


@pytest.fixture
def folder(built, tmp_path):
    """A good index, to be tampered with."""
    shutil.copytree(built, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(params=["folder", "hub", "streaming"])
def load(request, hub, folder, tmp_path):
    """Loads the tampered index by one of the three ways."""

    def from_pretrained():
        if request.param == "folder":
            return InfluenceIndex.from_pretrained(folder)
        upload(hub, folder)
        return InfluenceIndex.from_pretrained(
            REPO, cache_dir=tmp_path / "cache", streaming=request.param == "streaming"
        )

    from_pretrained.way = request.param
    return from_pretrained


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
@pytest.mark.parametrize("name", [SHARD, CURVATURE, "data/train-00002-of-00003.parquet"])
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
    ],
)
def test_an_impossible_value_in_the_manifest_is_our_error(folder, old, new):
    text = json.dumps(json.loads((folder / MANIFEST).read_text()))
    assert old in text
    (folder / MANIFEST).write_text(text.replace(old, new, 1))
    with pytest.raises((IndexFormatError, IndexCorruptedError)):
        InfluenceIndex.from_pretrained(folder)


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
    "another width": lambda t: t[:, :1],
    "another rank": lambda t: t.repeat(1, 1, 2),
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
    shutil.copyfile(folder / "data/train-00001-of-00003.parquet", folder / SHARD)
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

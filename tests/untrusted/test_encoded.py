"""Whiteners, packed factors, weights and sizes that an index claims to have: typed errors, and nothing is believed."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from tampering import MODULE, REPO, SHARD, edit, edit_tensors, query, upload
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.curvature.encoding import draw_projection
from lorif_hf.errors import IndexCorruptedError, IndexFormatError
from lorif_hf.storage.layout import CURVATURE, MANIFEST, ModuleEntry


PACKED = plain_config(
    projection_factor=2, shard_size=2, factor_rank=3, bits=4, whitening="kronecker", curvature="kronecker"
)
TRAK = InfluenceConfig.trak(projection_dim=16, shard_size=2, curvature="none")
GLOBAL = "all-layers"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """An index of bits and whiteners, and one of a global projection and weights."""
    found = {}
    for name, config in (("packed", PACKED), ("trak", TRAK)):
        found[name] = tmp_path_factory.mktemp("built") / name
        InfluenceIndex.build(make_gpt2(), make_rows(6), found[name], config=config)
    return found


@pytest.fixture(params=["folder", "streaming"])
def opened(request, originals, hub, tmp_path):
    """Copies an original, tampers with it and loads it, from its folder or streaming from the Hub."""

    def load(original, tamper):
        shutil.copytree(originals[original], tmp_path / "index")
        tamper(tmp_path / "index")
        if request.param == "folder":
            return InfluenceIndex.from_pretrained(tmp_path / "index")
        upload(hub, tmp_path / "index")
        return InfluenceIndex.from_pretrained(REPO, cache_dir=tmp_path / "cache", streaming=True)

    return load


def put(value):
    def function(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return function


@pytest.mark.parametrize("original", ["packed", "trak"])
def test_what_nobody_tampered_with_is_answered(opened, original):
    index = opened(original, lambda folder: None)
    index.verify()
    assert query(index).indices.shape == (1, 6)


TENSORS = {
    "whitener of another size": ("packed", CURVATURE, f"{MODULE}.in_whitener", lambda t: t[:-1]),
    "whitener turned over to a vector": ("packed", CURVATURE, f"{MODULE}.out_whitener", lambda t: t[0]),
    "whitener in F64": ("packed", CURVATURE, f"{MODULE}.in_whitener", lambda t: t.double()),
    "whitener NaN": ("packed", CURVATURE, f"{MODULE}.in_whitener", put(torch.nan)),
    "whitener infinite": ("packed", CURVATURE, f"{MODULE}.out_whitener", put(torch.inf)),
    "codes too short": ("packed", SHARD, f"{MODULE}.u", lambda t: t[:, :, :-1]),
    "codes too long": ("packed", SHARD, f"{MODULE}.v", lambda t: t.repeat(1, 1, 2)),
    "codes of another rank": ("packed", SHARD, f"{MODULE}.v", lambda t: t[:, :2]),
    "codes of fewer rows": ("packed", SHARD, f"{MODULE}.u", lambda t: t[:1]),
    "codes in I8": ("packed", SHARD, f"{MODULE}.u", lambda t: t.to(torch.int8)),
    "codes in BF16": ("packed", SHARD, f"{MODULE}.u", lambda t: t.bfloat16()),
    "scale NaN": ("packed", SHARD, f"{MODULE}.u_scale", put(torch.nan)),
    "scale infinite": ("packed", SHARD, f"{MODULE}.u_scale", put(-torch.inf)),
    "scale in F32": ("packed", SHARD, f"{MODULE}.u_scale", lambda t: t.float()),
    "scale of another rank": ("packed", SHARD, f"{MODULE}.u_scale", lambda t: t[:, :1]),
    "gradient NaN": ("trak", SHARD, f"{GLOBAL}.g", put(torch.nan)),
    "gradient of another size": ("trak", SHARD, f"{GLOBAL}.g", lambda t: t[:, :-1]),
    "weights negative": ("trak", SHARD, "weights", put(-0.5)),
    "weights NaN": ("trak", SHARD, "weights", put(torch.nan)),
    "weights infinite": ("trak", SHARD, "weights", put(torch.inf)),
    "weights of fewer rows": ("trak", SHARD, "weights", lambda t: t[:1]),
    "weights in F64": ("trak", SHARD, "weights", lambda t: t.double()),
}


@pytest.mark.parametrize("original, file, name, function", TENSORS.values(), ids=TENSORS)
def test_a_tensor_that_is_none(opened, original, file, name, function):
    def tamper(folder):
        edit_tensors(folder, file, lambda tensors: tensors.update({name: function(tensors[name]).contiguous()}))

    index = opened(original, tamper)
    for use in (query, lambda index: index.verify()):
        with pytest.raises(IndexCorruptedError) as caught:
            use(index)
        assert caught.value.file == file


MISSING = [
    ("packed", CURVATURE, f"{MODULE}.in_whitener"),
    ("packed", SHARD, f"{MODULE}.u_scale"),
    ("trak", SHARD, f"{GLOBAL}.g"),
    ("trak", SHARD, "weights"),
]


@pytest.mark.parametrize("original, file, name", MISSING)
def test_a_missing_tensor_is_named(opened, original, file, name):
    index = opened(original, lambda folder: edit_tensors(folder, file, lambda tensors: tensors.pop(name)))
    with pytest.raises(IndexCorruptedError, match=f"it has no tensor '{name}'") as caught:
        query(index)
    assert caught.value.file == file


def claim(**changes):
    """A change of the manifest's config that its projections' hashes bear out."""

    def change(values):
        values["config"].update(changes)
        config = InfluenceConfig.from_dict(values["config"])
        for module in values["modules"]:
            module["projection_sha256"] = draw_projection(ModuleEntry(**module), config)[1]

    return lambda folder: edit(folder, change)


LIES = {
    "twice the bits": ("packed", {"bits": 8}),
    "half the bits": ("packed", {"bits": 2}),
    "one bit": ("packed", {"bits": 1}),
    "no bits": ("packed", {"bits": 16}),
    "another rank": ("packed", {"factor_rank": 2}),
    "a dense index": ("packed", {"bits": 16, "factor_rank": None}),
    "a curvature of its own": ("packed", {"curvature": "low-rank"}),
    "a larger projection": ("trak", {"projection_dim": 17}),
    "a huge projection": ("trak", {"projection_dim": 10**12}),
    "a projection beyond any": ("trak", {"projection_dim": 2**62}),
    "another dtype": ("trak", {"dtype": "float32"}),
    "no projection": ("trak", {"projection_dim": None}),
}


@pytest.mark.parametrize("original, changes", LIES.values(), ids=LIES)
def test_a_config_that_the_files_do_not_bear_out(opened, original, changes):
    index = opened(original, claim(**changes))
    with pytest.raises(IndexCorruptedError) as caught:
        query(index)
    assert caught.value.file in ("factors/factors-00001.safetensors", CURVATURE)


@pytest.mark.parametrize("number", [2**63, 10**30])
@pytest.mark.parametrize("field", ["projection_dim", "factor_rank", "whitening_samples"])
def test_a_number_beyond_int64_is_refused_or_of_no_use(opened, field, number):
    original = "trak" if field == "projection_dim" else "packed"
    index = opened(original, lambda folder: edit(folder, lambda values: values["config"].update({field: number})))
    if field == "whitening_samples":
        assert query(index).indices.shape == (1, 6), "it was of use to the build alone"
        return
    with pytest.raises(IndexCorruptedError):
        query(index)


@pytest.mark.parametrize(
    "field, value",
    [
        ("bits", 3),
        ("bits", 4.0),
        ("bits", True),
        ("bits", None),
        ("bits", [4]),
        ("whitening", "evil"),
        ("whitening", None),
        ("curvature", "none"),
        ("output", ["loss"]),
        ("normalize", 1),
        ("projection_dim", 8),
        ("whitening_damping", 0),
        ("dtype", "float16"),
    ],
)
def test_an_impossible_choice_in_the_manifest_is_our_error(originals, tmp_path, field, value):
    shutil.copytree(originals["packed"], tmp_path / "index")
    edit(tmp_path / "index", lambda values: values["config"].update({field: value}))
    with pytest.raises(IndexFormatError, match="holds no valid config: "):
        InfluenceIndex.from_pretrained(tmp_path / "index")


def test_a_rank_above_its_layer_is_refused_though_the_files_hold_it(originals, tmp_path):
    shutil.copytree(originals["packed"], tmp_path / "index")
    edit(tmp_path / "index", lambda values: values["config"].update(factor_rank=9, factorize_query=True))
    for number in (1, 2, 3):
        file = f"factors/factors-0000{number}.safetensors"
        edit_tensors(
            tmp_path / "index",
            file,
            lambda tensors: tensors.update(
                {name: t.repeat(1, 3, *[1] * (t.dim() - 2)) for name, t in list(tensors.items())}
            ),
        )
    with pytest.raises(IndexCorruptedError, match=f"module '{MODULE}' is 6 x 18; .* 6 x 18, at rank 9") as caught:
        query(InfluenceIndex.from_pretrained(tmp_path / "index"))
    assert caught.value.file == MANIFEST


MEASURE = """
import resource, sys
sys.path.insert(0, {support!r})
from tiny import make_gpt2, make_rows
from lorif_hf import InfluenceIndex
from lorif_hf.errors import LorifError
def use(folder):
    InfluenceIndex.from_pretrained(folder).attribute(make_gpt2(), make_rows(1), top_k=6)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
use({good!r})
before = peak()
outcomes = []
for folder in {bad!r}:
    try:
        use(folder)
        outcomes.append("fine")
    except LorifError:
        outcomes.append("ours")
    except BaseException as error:
        outcomes.append(repr(error)[:200])
import json
print(json.dumps([peak() - before, outcomes]))
"""


@pytest.mark.slow
def test_nothing_of_the_claimed_size_is_made(originals, tmp_path, pytestconfig):
    """400 MB and far more, for projections and ranks whose hashes are right."""
    bad = []
    for original, changes in (
        ("trak", {"projection_dim": 10**8}),
        ("trak", {"projection_dim": 10**12}),
        ("packed", {"factor_rank": 10**8}),
    ):
        bad.append(str(tmp_path / str(len(bad))))
        shutil.copytree(originals[original], bad[-1])
        claim(**changes)(tmp_path / bad[-1])
    support = str(pytestconfig.rootpath / "tests" / "support")
    script = MEASURE.format(support=support, good=str(originals["trak"]), bad=bad)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    grown, outcomes = json.loads(ran.stdout.splitlines()[-1])
    assert outcomes == ["ours"] * 3
    assert grown < 100e6, f"{grown / 1e6:.0f} MB"

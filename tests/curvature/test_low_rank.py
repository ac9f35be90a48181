"""Fitting: one file a layer, kept where it is whole, and the same numbers from any codec."""

import re

import pytest
import torch
from dense import damped_inverse, off

from lorif_hf import InfluenceConfig
from lorif_hf.algebra.factors import reconstruct
from lorif_hf.algebra.planning import plan_fit
from lorif_hf.curvature.fitting import fit_curvature, plan_curvature, stored_gradients
from lorif_hf.errors import ConfigError, RecordingError
from lorif_hf.storage.files import file_entry, header_sha256
from lorif_hf.storage.layout import FactorShard, ModuleEntry, factor_file
from lorif_hf.storage.shards import ShardReader, write_shard
from lorif_hf.storage.store import LocalStore


ENTRIES = [ModuleEntry("a.b", "linear", 5, 4, 5, 4, ""), ModuleEntry("c", "linear", 3, 6, 3, 6, "")]
SIZES = [7, 4, 9]
CONFIGS = {
    "factors": InfluenceConfig.paper(projection_factor=1, factor_rank=2, curvature_rank=None, dtype="float32"),
    "four bits": InfluenceConfig.paper(projection_factor=1, factor_rank=2, curvature_rank=None, bits=4),
    "dense": InfluenceConfig.logra(projection_factor=1),
}


def least_memory(config, enough):
    """The least that works for every entry, as the error tells it."""
    least = 1
    while least < enough:
        try:
            plan_curvature(ENTRIES, sum(SIZES), config, least)
            return least
        except ConfigError as error:
            least = int(re.search(r"the least that works is (\d+) bytes", str(error))[1])
    return least


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def recorded(request, tmp_path):
    """A config, a reader of three shards, and what they hold as matrices."""
    config, generator = request.param, torch.Generator().manual_seed(0)
    codec, shards, held, start = config.codec(), [], {entry.name: [] for entry in ENTRIES}, 0
    for number, rows in enumerate(SIZES):
        parts = {}
        for entry in ENTRIES:
            parts[entry.name] = codec.encode(torch.randn(rows, entry.d1, entry.d2, generator=generator))
            held[entry.name].append(reconstruct(*codec.factors(parts[entry.name], entry.d1, entry.d2)).double())
        file = factor_file(number, len(SIZES))
        write_shard(tmp_path / file, parts)
        entry = file_entry(tmp_path, file)
        header = header_sha256(tmp_path / file)
        shards.append(FactorShard(file, entry.bytes, entry.sha256, start, rows, header))
        start += rows
    reader = ShardReader(LocalStore(tmp_path), shards, None, codec.layout)
    return config, reader, {name: torch.cat(some).flatten(1) for name, some in held.items()}


def fit(recorded, folder, max_memory=None):
    config, reader, _ = recorded
    path = lambda number: folder / f"{number}.safetensors"  # noqa: E731
    return fit_curvature(reader, ENTRIES, sum(SIZES), config, path, max_memory)


@pytest.mark.parametrize("memory", [None, "least"])
def test_the_curvature_is_that_of_what_is_stored(recorded, tmp_path, memory):
    if memory == "least":
        memory = least_memory(recorded[0], 1 << 40)
    tensors, influence = fit(recorded, tmp_path / "parts", memory)
    config, _, held = recorded
    expected = torch.zeros(sum(SIZES), dtype=torch.float64)
    for entry in ENTRIES:
        g = held[entry.name]
        vectors, values = (tensors[f"{entry.name}.{part}"].double() for part in ("eigenvectors", "eigenvalues"))
        assert off(vectors * values @ vectors.T, g.T @ g) < 1e-5
        assert float(tensors[f"{entry.name}.trace"]) == pytest.approx(float(g.square().sum()), rel=1e-6)
        strength = config.damping * float(g.square().sum()) / g.shape[1]
        assert float(tensors[f"{entry.name}.damping"]) == pytest.approx(strength, rel=1e-6)
        expected += (g @ damped_inverse(g, config.damping) * g).sum(dim=1)
    assert len(tensors) == 4 * len(ENTRIES)
    assert influence.dtype == torch.float64 and off(influence, expected) < 1e-4


def test_a_layer_that_is_fitted_is_not_fitted_again_unless_its_file_is_damaged(recorded, tmp_path, monkeypatch):
    from lorif_hf.algebra import curvature

    tensors, influence = fit(recorded, tmp_path / "parts")
    real, fitted = curvature.fit, []
    monkeypatch.setattr(curvature, "fit", lambda *a, **k: fitted.append(a[0].dim) or real(*a, **k))
    for damaged in (False, True):
        if damaged:
            path = tmp_path / "parts" / "1.safetensors"
            path.write_bytes(path.read_bytes()[:-3])
        again, same = fit(recorded, tmp_path / "parts")
        assert fitted == ([18] if damaged else []), "only the second layer, of 3 x 6"
        assert torch.equal(same, influence) and list(again) == list(tensors)
        assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_the_rank_is_the_configs(tmp_path):
    config = InfluenceConfig.paper(projection_factor=1, curvature_rank=3, dtype="float32")
    parts = {e.name: config.codec().encode(torch.randn(8, e.d1, e.d2)) for e in ENTRIES}
    write_shard(tmp_path / factor_file(0, 1), parts)
    entry = file_entry(tmp_path, factor_file(0, 1))
    shard = FactorShard(entry.file, entry.bytes, entry.sha256, 0, 8, header_sha256(tmp_path / entry.file))
    reader = ShardReader(LocalStore(tmp_path), [shard], None, config.codec().layout)
    tensors, _ = fit_curvature(reader, ENTRIES, 8, config, lambda number: tmp_path / f"{number}.safetensors")
    assert [tensors[f"{e.name}.eigenvectors"].shape for e in ENTRIES] == [(20, 3), (18, 3)]


def test_too_little_memory_is_refused_with_the_least_that_works_before_anything_is_fitted(recorded, tmp_path):
    config = recorded[0]
    least = least_memory(config, 1 << 40)
    with pytest.raises(ConfigError) as caught:
        fit(recorded, tmp_path / "parts", 1000)
    first = plan_fit(stored_gradients(recorded[1], ENTRIES[0], 20, config), None, max_memory=0).memory
    assert str(caught.value) == (
        f"max_memory=1000 is too small for the curvature of module 'a.b', 5 x 4 at rank 20: the least that works is "
        f"{first} bytes. Allow as much, or set a lower curvature_rank or a higher projection_factor."
    )
    with pytest.raises(ConfigError, match=f"the least that works is {least} bytes"):
        fit(recorded, tmp_path / "parts", least - 1)
    assert not (tmp_path / "parts").exists()
    assert len(fit(recorded, tmp_path / "parts", least)[0]) == 4 * len(ENTRIES)


def test_several_passes_are_asked_for_by_the_config():
    wide = [ModuleEntry("wide", "linear", 192, 192, 192, 192, "")]
    for config, method, passes in (
        (InfluenceConfig.paper(), "randomized", 5),
        (InfluenceConfig.paper(curvature_passes=2), "randomized", 2),
        (InfluenceConfig.paper(curvature_passes=1), "nystroem", 1),
    ):
        (plan,) = plan_curvature(wide, 1_000_000, config)
        assert (plan.method, plan.passes) == (method, passes)


def test_ranges_of_rows_are_read_in_order_and_no_longer_than_asked(recorded):
    config, reader, held = recorded
    for rows in (1, 3, 100):
        blocks = list(stored_gradients(reader, ENTRIES[0], sum(SIZES), config).blocks(rows))
        assert [len(left) for left, _ in blocks] == [
            min(rows, size - start) for size in SIZES for start in range(0, size, rows)
        ]
        found = torch.cat([reconstruct(left.float(), None if r is None else r.float()) for left, r in blocks])
        assert off(found.flatten(1), held["a.b"]) < 1e-6


def test_gradients_beyond_float32_are_refused_with_the_module(recorded, tmp_path, monkeypatch):
    from lorif_hf.algebra import curvature

    def refused(*args, **kwargs):
        raise ValueError("the squares of the gradients are beyond float32")

    monkeypatch.setattr(curvature, "fit", refused)
    with pytest.raises(RecordingError) as caught:
        fit(recorded, tmp_path / "parts")
    assert str(caught.value) == (
        "The curvature of module 'a.b' cannot be fitted: the squares of the gradients are beyond float32. Leave it "
        "out with exclude_modules."
    )

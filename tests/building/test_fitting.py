"""Fitting: one file a layer, kept where it is whole, and the same numbers from any codec."""

import re

import pytest
import torch
from codec_scores import rebuilt
from dense import damped_inverse, off
from factor_shards import shard_entry

from lorif_hf import InfluenceConfig
from lorif_hf.algebra.factors import reconstruct
from lorif_hf.algebra.planning import plan_fit
from lorif_hf.building.fitting import check_memory, fit_curvature, shape_of, stored_gradients
from lorif_hf.codecs import codec_of
from lorif_hf.curvature import curvature_of, low_rank
from lorif_hf.errors import ConfigError, RecordingError
from lorif_hf.storage.layout import ModuleEntry, factor_file
from lorif_hf.storage.shards import ShardReader, write_shard
from lorif_hf.storage.store import LocalStore


ENTRIES = [ModuleEntry("a.b", "linear", 5, 4, 5, 4, ""), ModuleEntry("c", "linear", 3, 6, 3, 6, "")]
SIZES = [7, 4, 9]
COUNT = sum(SIZES)
CONFIGS = {
    "factors": InfluenceConfig.paper(projection_factor=1, factor_rank=2, curvature_rank=None, dtype="float32"),
    "four bits": InfluenceConfig.paper(projection_factor=1, factor_rank=2, curvature_rank=None, bits=4),
    "dense": InfluenceConfig.logra(projection_factor=1),
}


def check(config, max_memory, entries=ENTRIES, count=COUNT):
    check_memory(curvature_of(config), codec_of(config), entries, count, max_memory)


def least_memory(config, enough):
    """The least that works for every entry, as the error tells it."""
    least = 1
    while least < enough:
        try:
            check(config, least)
            return least
        except ConfigError as error:
            least = int(re.search(r"the least that works is (\d+) bytes", str(error))[1])
    return least


def write(folder, config, entries=ENTRIES, sizes=SIZES, seed=0):
    """A reader of random shards, and what they hold as matrices."""
    codec, generator = codec_of(config), torch.Generator().manual_seed(seed)
    shards, held, start = [], {entry.name: [] for entry in entries}, 0
    for number, rows in enumerate(sizes):
        parts = {}
        for entry in entries:
            parts[entry.name] = codec.encode(torch.randn(rows, entry.d1, entry.d2, generator=generator))
            held[entry.name].append(rebuilt(codec, parts[entry.name], entry.d1, entry.d2))
        write_shard(folder / factor_file(number), parts)
        shards.append(shard_entry(folder, factor_file(number), start, rows))
        start += rows
    reader = ShardReader(LocalStore(folder), shards, None, codec.layout)
    return reader, {name: torch.cat(blocks).flatten(1) for name, blocks in held.items()}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def recorded(request, tmp_path):
    """A config, a reader of three shards, and what they hold as matrices."""
    return request.param, *write(tmp_path, request.param)


def fit(recorded, folder, max_memory=None):
    config, reader, _ = recorded
    path = lambda number: folder / f"{number}.safetensors"  # noqa: E731
    return fit_curvature(curvature_of(config), codec_of(config), reader, ENTRIES, {}, COUNT, path, max_memory)


@pytest.mark.parametrize("memory", [None, "least"])
def test_the_curvature_is_that_of_what_is_stored(recorded, tmp_path, memory):
    if memory == "least":
        memory = least_memory(recorded[0], 1 << 40)
    tensors, influence = fit(recorded, tmp_path / "parts", memory)
    config, _, held = recorded
    expected = torch.zeros(COUNT, dtype=torch.float64)
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
    tensors, influence = fit(recorded, tmp_path / "parts")
    real, fitted = low_rank.fit, []
    monkeypatch.setattr(low_rank, "fit", lambda *a, **k: fitted.append(a[0].dim) or real(*a, **k))
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
    reader, _ = write(tmp_path, config, sizes=[COUNT])
    tensors, _ = fit((config, reader, None), tmp_path)
    assert [tensors[f"{entry.name}.eigenvectors"].shape for entry in ENTRIES] == [(20, 3), (18, 3)]


@pytest.mark.parametrize(
    "config",
    [InfluenceConfig.grad_dot(projection_factor=1), InfluenceConfig(factor_rank=2)],
    ids=lambda config: config.curvature,
)
def test_a_curvature_with_nothing_to_fit_writes_nothing_and_has_no_influence(tmp_path, config):
    reader, _ = write(tmp_path, config)
    assert fit((config, reader, None), tmp_path / "parts") == ({}, None)
    assert not (tmp_path / "parts").exists()


def test_too_little_memory_is_refused_with_the_least_that_works(recorded, tmp_path):
    config = recorded[0]
    least = least_memory(config, 1 << 40)
    with pytest.raises(ConfigError) as caught:
        check(config, 1000)
    first = plan_fit(stored_gradients(recorded[1], ENTRIES[0], COUNT, codec_of(config)), None, max_memory=0).memory
    assert str(caught.value) == (
        f"max_memory=1000 is too small for the curvature of module 'a.b', 5 x 4 of 20 examples: the least that works "
        f"is {first} bytes. Allow as much, or set a lower curvature_rank or a higher projection_factor."
    )
    with pytest.raises(ConfigError, match=f"the least that works is {least} bytes"):
        check(config, least - 1)
    check(config, least)
    assert len(fit(recorded, tmp_path / "parts", least)[0]) == 4 * len(ENTRIES)


def test_without_a_limit_every_fit_is_allowed():
    """However large: the least that works is taken."""
    wide = [ModuleEntry("wide", "linear", 10**5, 10**5, 10**5, 10**5, "")]
    check(InfluenceConfig.paper(), None, wide, 10**9)
    with pytest.raises(ConfigError, match="too small for the curvature of module 'wide'"):
        check(InfluenceConfig.paper(), 1 << 30, wide, 10**9)
    for config in (InfluenceConfig(), InfluenceConfig.grad_dot()):
        check(config, 1, wide, 10**9)


def test_the_shape_of_a_layer_is_known_before_anything_is_stored(recorded):
    config, reader, _ = recorded
    codec = codec_of(config)
    shape, stored = shape_of(ENTRIES[1], COUNT, codec), stored_gradients(reader, ENTRIES[1], COUNT, codec)
    for name in ("count", "d1", "d2", "dim", "size", "factor_rank"):
        assert getattr(shape, name) == getattr(stored, name), name
    assert list(shape.blocks(5)) == []


def test_ranges_of_rows_are_read_in_order_and_no_longer_than_asked(recorded):
    config, reader, held = recorded
    for rows in (1, 3, 100):
        blocks = list(stored_gradients(reader, ENTRIES[0], COUNT, codec_of(config)).blocks(rows))
        assert [len(left) for left, _ in blocks] == [
            min(rows, size - start) for size in SIZES for start in range(0, size, rows)
        ]
        again = [
            reconstruct(left.float(), None if right is None else right.float()).flatten(1) for left, right in blocks
        ]
        assert off(torch.cat(again), held["a.b"]) < 1e-6


def test_gradients_beyond_float32_are_refused_with_the_module(recorded, tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise ValueError("the squares of the gradients are beyond float32")

    monkeypatch.setattr(low_rank, "fit", refused)
    with pytest.raises(RecordingError) as caught:
        fit(recorded, tmp_path / "parts")
    assert str(caught.value) == (
        "The curvature of module 'a.b' cannot be fitted: the squares of the gradients are beyond float32. Leave it "
        "out with exclude_modules."
    )

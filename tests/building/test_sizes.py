"""What a build takes: beside the files of one that was built, and by hand."""

import pytest
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building.sizes import sizes_of, with_shards
from lorif_hf.storage.files import parse_header
from lorif_hf.storage.layout import CURVATURE, STAGING, ModuleEntry


def entry(name, d1, d2, input_of=None):
    return ModuleEntry(name, "linear", d1, d2, d1, d2, "", input_of=input_of)


LAYERS = [entry("q", 16, 8), entry("k", 16, 4, "q"), entry("out", 8, 16), entry("up", 16, 32)]


def tensor_bytes(path):
    content = path.read_bytes()
    return sum(span.end - span.begin for span in parse_header(path.name, len(content), content).values())


def test_the_sizes_of_the_default_by_hand():
    sizes = sizes_of(InfluenceConfig(shard_size=10), LAYERS, 100)
    assert sizes.per_example == sum(3 * ((e.d1 + e.d2) // 8 + 2) for e in LAYERS) + 3  # a byte is begun for 4 bits
    squares = [16**2 + 8**2, 4**2, 8**2 + 16**2, 16**2 + 32**2]
    assert sizes.fixed == sizes.gathered == sizes.staged == 4 * sum(squares)
    assert sizes.group == 4 * squares[3] and sizes.widest == "up"
    assert sizes.shards == 3 * 10 * sizes.per_example
    assert sizes.moment == 5 * 8 * 32**2 and sizes.fit == 0
    assert sizes.index == 100 * sizes.per_example + sizes.fixed
    assert sizes.disk == sizes.index + sizes.fixed + 56 * 100
    assert sizes.to_fit == sizes.gathered + sizes.moment
    assert sizes.memory == sizes.gathered + max(sizes.shards, sizes.moment)
    assert sizes.least_memory == sizes.group + max(sizes.shards, sizes.moment)


def test_layers_with_the_same_inputs_are_there_together():
    layers = [entry("q", 16, 8), entry("k", 16, 32, "q"), entry("up", 16, 32)]
    sizes = sizes_of(InfluenceConfig(), layers, 10)
    assert sizes.group == 4 * (16**2 + 8**2 + 32**2) and sizes.widest == "k"


def test_where_a_norm_over_all_layers_is_taken_all_are_there_together():
    sizes = sizes_of(InfluenceConfig(normalize=True), LAYERS, 10)
    assert sizes.group == sizes.gathered


@pytest.mark.parametrize("rows, held", [(200, 2 * 100), (100, 2 * 100), (60, 3 * 60), (10, 3 * 10)])
def test_a_shard_is_made_while_another_is_written_and_copied(rows, held):
    sizes = sizes_of(InfluenceConfig(), LAYERS, 100)
    assert with_shards(sizes, rows).shards == held * sizes.per_example


CONFIGS = {
    "default": InfluenceConfig(),
    "low-rank": plain_config(projection_factor=2),
    "both": plain_config(projection_factor=1, whitening="kronecker"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_disk_holds_what_is_said(tmp_path, name, monkeypatch):
    """At the moment when the curvature file is whole and the build's own files are still there."""
    count, seen = 9, []

    def look(builder, influence):
        files = list((builder.folder / STAGING).rglob("*.safetensors"))
        seen.append(sum(map(tensor_bytes, files)))
        seen.append(tensor_bytes(builder.folder / CURVATURE))
        finish(builder, influence)

    from lorif_hf.building.builder import IndexBuilder

    finish = IndexBuilder._finish
    monkeypatch.setattr(IndexBuilder, "_finish", look)
    index = InfluenceIndex.build(make_gpt2(), make_rows(count), tmp_path / "index", config=CONFIGS[name])
    sizes = sizes_of(CONFIGS[name], index.manifest.modules, count)
    small = (4 * 64 + 16) * len(index.manifest.modules)  # eigenvalues, damping and trace of a layer
    assert 0.8 * sizes.fixed <= seen[1] <= sizes.fixed + small
    assert 0.8 * (sizes.staged + sizes.noted / 2) <= seen[0] <= sizes.staged + sizes.noted + small


def test_entries_of_one_shape_are_asked_once(monkeypatch):
    from lorif_hf.curvature.low_rank import LowRankCurvature

    asked, cost = [], LowRankCurvature.cost
    monkeypatch.setattr(LowRankCurvature, "cost", lambda self, g, m: asked.append((g.d1, g.d2)) or cost(self, g, m))
    config = plain_config(projection_factor=1)
    many = sizes_of(config, [entry(f"layer.{i}", 8, 4) for i in range(5)], 20)
    assert asked == [(8, 4)]
    lone = sizes_of(config, [entry("layer.0", 8, 4)], 20)
    assert many.fixed == 5 * lone.fixed and many.fit == lone.fit and many.fitted == "layer.0"

"""The norms that the manifest states: never below those of what is stored."""

from dataclasses import replace

import pytest
import torch
from synthetic import write
from test_scanning import CONFIGS, SHAPES
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.building.block_norms import check_norms
from lorif_hf.errors import IndexCorruptedError
from lorif_hf.storage.layout import Manifest


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_block_states_its_largest_norm_to_four_digits(tmp_path, config):
    index = write(tmp_path, config, SHAPES, [1001, 999, 1])
    start = 0
    for shard in index.reader.shards:
        assert len(shard.block_norms) == (2 if shard.rows == 1001 else 1)
        for number, stated in enumerate(shard.block_norms):
            rows = slice(start + 1000 * number, min(start + 1000 * (number + 1), start + shard.rows))
            for entry, norm in zip(index.entries, stated, strict=True):
                norms = index.held[entry.name][rows].flatten(1).norm(dim=1) * index.weights[rows].double()
                assert float(norms.max()) <= norm <= float(norms.max()) * 1.001
        start += shard.rows
        check_norms(index.reader, shard, index.entries, config)


def test_a_norm_that_is_too_small_is_found_by_verify(tmp_path):
    index = InfluenceIndex.build(make_gpt2(), make_rows(9), tmp_path / "index", config=plain_config(shard_size=4))
    index.verify()
    shard = index.manifest.shards[1]
    low = tuple(tuple(norm * (0.5 if i == 3 else 1) for i, norm in enumerate(norms)) for norms in shard.block_norms)
    tampered = replace(
        index.manifest, shards=[replace(s, block_norms=low) if s == shard else s for s in index.manifest.shards]
    )
    (index.path / "influence_config.json").write_text(tampered.to_json())
    with pytest.raises(IndexCorruptedError, match=f"the block_norms of {shard.file} are below those of its factors"):
        InfluenceIndex.from_pretrained(index.path).verify()


def test_zero_rows_have_norm_zero_and_the_manifest_holds_them_all(tmp_path):
    index = write(tmp_path, plain_config(), SHAPES, [5], torch.zeros(5))
    assert index.reader.shards[0].block_norms == ((0.0, 0.0, 0.0),)


def test_an_interrupted_build_states_the_same_norms(tmp_path, monkeypatch):
    config = plain_config(shard_size=4)
    whole = InfluenceIndex.build(make_gpt2(), make_rows(9), tmp_path / "whole", config=config)
    from lorif_hf import build

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build.IndexBuilder, "_fit_all", stop)
        with pytest.raises(KeyboardInterrupt):
            InfluenceIndex.build(make_gpt2(), make_rows(9), tmp_path / "cut", config=config)
    resumed = InfluenceIndex.build(make_gpt2(), make_rows(9), tmp_path / "cut", config=config)
    assert isinstance(resumed.manifest, Manifest) and resumed.manifest.shards == whole.manifest.shards
    assert all(len(norms) == 8 for shard in whole.manifest.shards for norms in shard.block_norms)

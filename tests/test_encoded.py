"""Every way to store gradients goes through the same build, files, Hub and streaming."""

import pytest
import torch
from dense import make_task
from digests import digests
from tiny import plain_config

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.curvature import low_rank
from lorif_hf.curvature.encoding import bytes_per_example
from lorif_hf.errors import QueryError
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.storage.files import TensorFile


REPO = "user/encoded"
COMMON = {"projection_factor": 2, "shard_size": 5}
WHITENED = {**COMMON, "whitening": "kronecker", "curvature": "kronecker", "whitening_samples": 9}
CONFIGS = {
    **{f"{bits} bits": plain_config(**WHITENED, factor_rank=3, bits=bits) for bits in (8, 4, 2, 1)},
    "16 bits": plain_config(**WHITENED, factor_rank=3, bits=16),
    "2 bits, low-rank": InfluenceConfig.paper(**COMMON, factor_rank=2, bits=2, curvature_rank=6),
    "whitened, low-rank": plain_config(**{**WHITENED, "curvature": "low-rank"}, factor_rank=2, bits=4),
    "dense": InfluenceConfig.logra(**COMMON),
    "trak": InfluenceConfig.trak(projection_dim=32, shard_size=5),
    "cosine": InfluenceConfig.grad_cos(**COMMON),
}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
COUNT = 17


def build(folder, config, **options):
    model, rows = make_task("causal-lm", COUNT)
    return InfluenceIndex.build(model, rows, folder, config=config, **options)


def stored(index, name):
    """All rows of one part, by tensor name."""
    files = [TensorFile(index.path, shard) for shard in index.manifest.shards]
    return torch.cat([file.read(name) for file in files])


@every
def test_the_same_scores_everywhere(hub, tmp_path, config):
    model, rows = make_task("causal-lm", COUNT)
    queries = rows.select([2, 13])
    index = build(tmp_path / "index", config)
    expected = index.scores(model, queries)
    assert bool(expected.isfinite().all()) and float(expected.abs().min()) > 0
    index.save_pretrained(tmp_path / "copy")
    index.push_to_hub(REPO, token=hub.token)
    ways = {
        "folder": InfluenceIndex.from_pretrained(tmp_path / "copy"),
        "hub": InfluenceIndex.from_pretrained(REPO, cache_dir=tmp_path / "one"),
        "streaming": InfluenceIndex.from_pretrained(REPO, cache_dir=tmp_path / "two", streaming=True),
    }
    chosen = [1, 2, 3, 9, 16]
    single = config.projection_dim is None
    pattern = ["mlp.c_fc", "attn.c_proj"] if single else None
    parts = index.scores(model, queries, per_module=True)
    expected_part = sum(part for name, part in parts.items() if not single or name.endswith(tuple(pattern)))
    for way, loaded in ways.items():
        loaded.verify()
        assert torch.equal(loaded.scores(model, queries), expected), way
        torch.testing.assert_close(loaded.self_influence(), index.self_influence(), rtol=0, atol=0)
        selected = loaded.select(chosen)
        scores = selected.scores(model, queries)
        torch.testing.assert_close(scores, expected[:, chosen], rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
        found = selected.attribute(model, queries, top_k=3, modules=pattern)
        best = expected_part[:, chosen].topk(3, dim=1)
        assert torch.equal(found.indices, torch.tensor(chosen)[best.indices]), way
        torch.testing.assert_close(found.scores, best.values, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
        assert [row["row"] for row in found[0].to_list()] == found.indices[0].tolist()


@every
def test_a_second_build_is_byte_identical(tmp_path, config):
    build(tmp_path / "first", config)
    build(tmp_path / "second", config)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


@every
def test_the_bytes_of_an_example_are_counted_right(tmp_path, config):
    index = build(tmp_path / "index", config)
    spans = TensorFile(index.path, index.manifest.shards[0]).spans.values()
    total = sum(torch.empty(span.shape, dtype=span.dtype, device="meta").nbytes for span in spans)
    assert total == 5 * bytes_per_example(config, index.manifest.modules)


class Killed(BaseException):
    """Not an Exception: like a signal, nothing may swallow it."""


@pytest.mark.parametrize("killed_after", [0, 4, 9, 12, 24])
@pytest.mark.parametrize("name", ["4 bits", "whitened, low-rank", "trak"])
def test_a_build_killed_while_recording_goes_on_and_ends_with_the_same_bytes(
    tmp_path, monkeypatch, name, killed_after
):
    config = CONFIGS[name]
    build(tmp_path / "whole", config, batch_size=1)
    sampled = 0 if config.whitening == "none" else 9
    killed_after = min(killed_after, sampled + COUNT - 1)
    record, recorded = GradientRecorder.record, []

    def counted(self, batch, rows=None, *rest):
        if len(recorded) == killed_after:
            raise Killed
        recorded.append(rows)
        return record(self, batch, rows, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(GradientRecorder, "record", counted)
        build(tmp_path / "killed", config, batch_size=1)
    recorded.clear()
    killed_before, killed_after = killed_after, -1
    monkeypatch.setattr(GradientRecorder, "record", counted)
    build(tmp_path / "killed", config, batch_size=1)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    done = max(0, killed_before - sampled) // 5 * 5
    again = sampled if killed_before < sampled else 0
    assert len(recorded) == again + COUNT - done, "finished moments and shards must not be recorded again"


def test_a_whitened_build_killed_while_fitting_keeps_the_fitted_modules(tmp_path, monkeypatch):
    config = CONFIGS["whitened, low-rank"]
    build(tmp_path / "whole", config)
    fit, calls = low_rank.fit, []

    def counted(*args, **kwargs):
        if len(calls) == 3:
            raise Killed
        calls.append(1)
        return fit(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(low_rank, "fit", counted)
        build(tmp_path / "killed", config)
    again = []
    monkeypatch.setattr(low_rank, "fit", lambda *a, **k: again.append(1) or fit(*a, **k))
    build(tmp_path / "killed", config)
    assert len(again) == 8 - 3
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_what_is_stored_does_not_depend_on_the_batch(tmp_path, bits):
    """Another batch rounds otherwise, at the seventh digit: it moves a code only where a number lies on an edge.

    A moved code also moves those of the pairs after it, which are fitted to what it left.
    """
    config = CONFIGS[f"{bits} bits"]
    indices = [build(tmp_path / f"{size}", config, batch_size=size) for size in (1, 4, COUNT)]
    model, rows = make_task("causal-lm", COUNT)
    moved = total = 0
    for name in [f"{module.name}.{side}" for module in indices[0].manifest.modules for side in "uv"]:
        one, *others = (stored(index, name) for index in indices)
        moved += sum(int((one != other).sum()) for other in others)
        total += one.numel() * len(others)
    assert moved <= 0.002 * total, f"{moved} of {total} bytes of codes"
    expected, *others = (index.scores(model, rows.select([2, 13])) for index in indices)
    for scores in others:
        assert float((scores - expected).norm() / expected.norm()) < 1e-3


@every
def test_the_curvature_file_holds_what_the_config_says_and_no_more(tmp_path, config):
    index = build(tmp_path / "index", config)
    found = {name.rpartition(".")[2] for name in TensorFile(index.path, index.manifest.curvature).spans}
    expected = {"in_whitener", "out_whitener"} if config.whitening == "kronecker" else set()
    if config.curvature == "low-rank":
        expected |= {"eigenvectors", "eigenvalues", "damping", "trace"}
    assert found == expected


def test_only_a_margin_has_weights(tmp_path):
    for name, margin in (("trak", True), ("4 bits", False)):
        index = build(tmp_path / name, CONFIGS[name])
        names = {entry for shard in index.manifest.shards for entry in TensorFile(index.path, shard).spans}
        assert ("weights" in names) == margin


def test_whitening_looks_at_evenly_spaced_rows(tmp_path, monkeypatch):
    record, seen = GradientRecorder.record, []

    def noted(self, batch, rows=None, *rest):
        if self.statistics:
            seen.extend(rows)
        return record(self, batch, rows, *rest)

    monkeypatch.setattr(GradientRecorder, "record", noted)
    build(tmp_path / "index", CONFIGS["4 bits"], batch_size=4)
    assert seen == [number * COUNT // 9 for number in range(9)]


def test_a_query_of_an_index_of_bits_is_not_truncated_unless_asked(tmp_path):
    model, rows = make_task("causal-lm", COUNT)
    full = build(tmp_path / "full", plain_config(**WHITENED, bits=4, factorize_query=False))
    cut = build(tmp_path / "cut", plain_config(**WHITENED, bits=4, factorize_query=True))
    one, two = (index.scores(model, rows.select([5])) for index in (full, cut))
    assert not torch.allclose(one, two, rtol=1e-2)
    with pytest.raises(QueryError, match="matches none of the index's 8 modules"):
        full.scores(model, rows.select([5]), modules=["nothing"])

"""Scanning: all scores, and the best of them, are those of a dense product in float64."""

from dataclasses import replace

import pytest
import torch
from factor_shards import shard_entry
from synthetic import write, write_number
from tiny import plain_config

from lorif_hf import InfluenceConfig
from lorif_hf.algebra import sign_scoring
from lorif_hf.algebra.scoring import QueryGroup
from lorif_hf.algebra.thin_queries import compress
from lorif_hf.errors import IndexCorruptedError
from lorif_hf.querying import scan as scanning
from lorif_hf.querying.scan import best_scores, every_score
from lorif_hf.storage.files import write_tensors


SHAPES, SIZES = [(16, 12), (12, 20), (16, 12)], [70, 50, 33]
COUNT = sum(SIZES)
CONFIGS = {
    "factors": plain_config(dtype="float32"),
    "bfloat16, three pairs": plain_config(factor_rank=3),
    "one bit": InfluenceConfig(),
    "four bits": InfluenceConfig(factor_rank=2, bits=4),
    "dense": InfluenceConfig.logra(dtype="float32"),
    "weighted": plain_config(dtype="float32", output="margin"),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks a shard: of ten rows at least."""
    monkeypatch.setattr(scanning, "_LEAST_ROWS", 10)
    monkeypatch.setattr(scanning, "BLOCK_NUMBERS", 80)


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param, "a scan puts torch's threads back"
    torch.set_num_threads(before)


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request):
    return request.param


def heavy(count=COUNT, seed=5, spread=1.5):
    """Norms with a heavy tail, clustered as in a data set that was put together from sources."""
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(count // 10 + 1, generator=generator)).exp().repeat_interleave(10)[:count]


def queries_of(index, count=4, decay=0.5, seed=1):
    """Queries of a falling spectrum, some of them near stored gradients; with their dense matrices."""
    generator = torch.Generator().manual_seed(seed)
    dense = {}
    for entry in index.entries:
        scale = decay ** torch.arange(entry.d1).view(-1, 1) * decay ** torch.arange(entry.d2)
        noise = torch.randn(count, entry.d1, entry.d2, generator=generator) * scale
        dense[entry.name] = noise
        dense[entry.name][0] += index.held[entry.name][7].float()
    groups = {name: [QueryGroup(torch.arange(count), matrices)] for name, matrices in dense.items()}
    return groups, dense


def expected_scores(index, dense):
    """(entries, Q, N), float64."""
    products = [dense[e.name].double().flatten(1) @ index.held[e.name].flatten(1).T for e in index.entries]
    return torch.stack(products) * index.weights.double()


def assert_best(best, scores, k, largest, rows=None):
    rows = torch.arange(scores.shape[1]) if rows is None else rows
    values, columns = scores[:, rows].sort(dim=1, descending=largest, stable=True)
    assert torch.equal(best.indices, rows[columns[:, :k]])
    torch.testing.assert_close(best.scores.double(), values[:, :k], rtol=1e-4, atol=1e-4 * float(scores.abs().max()))


def test_all_scores_are_those_of_a_dense_product(tmp_path, config, threads):
    index = write(tmp_path, config, SHAPES, SIZES)
    groups, dense = queries_of(index)
    expected = expected_scores(index, dense)
    apart, together = torch.empty(3, 4, COUNT), torch.empty(4, COUNT)
    every_score(index.scan(groups, 4), apart)
    every_score(index.scan(groups, 4), together)
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * float(expected.abs().max())}
    torch.testing.assert_close(apart.double(), expected, **tolerance)
    torch.testing.assert_close(together.double(), expected.sum(dim=0), **tolerance)
    chosen = torch.tensor([0, 9, 10, 69, 119, 152])
    selected = torch.empty(4, len(chosen))
    every_score(index.scan(groups, 4, rows=chosen), selected)
    torch.testing.assert_close(selected.double(), expected.sum(dim=0)[:, chosen], **tolerance)
    if config.weighted:
        every_score(index.scan(groups, 4, weighted=False), together)
        torch.testing.assert_close(together.double() * index.weights, expected.sum(dim=0), **tolerance)


@pytest.mark.parametrize("queries", [1, 8])
def test_the_best_of_signs_that_are_looked_up(tmp_path, monkeypatch, queries, threads):
    monkeypatch.setattr(sign_scoring, "_LEAST_PAIRS", 1)
    index = write(tmp_path, CONFIGS["one bit"], SHAPES, SIZES)
    groups, dense = queries_of(index, queries)
    expected = expected_scores(index, dense).sum(dim=0)
    scan, scores = index.scan(groups, queries), torch.empty(queries, COUNT)
    every_score(scan, scores)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert_best(best_scores(scan, 5), expected, 5, True)


def test_some_of_the_stored_gradients_are_scored_alone(tmp_path, config):
    index = write(tmp_path, config, SHAPES, SIZES)
    groups, dense = queries_of(index)
    expected = expected_scores(index, dense)[1]
    scan = replace(index.scan(groups, 4), entries=index.entries[1:2])
    scores = torch.empty(4, COUNT)
    every_score(scan, scores)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert_best(best_scores(scan, 5), expected, 5, True)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("norms", ["random", "heavy-tailed"])
def test_the_best_are_those_of_all_scores(tmp_path, config, norms, largest, threads):
    index = write(tmp_path, config, SHAPES, SIZES, heavy() if norms == "heavy-tailed" else None)
    for count, k in ((4, 5), (1, 1), (2, COUNT + 1)):
        groups, dense = queries_of(index, count)
        best = best_scores(index.scan(groups, count), k, largest)
        assert_best(best, expected_scores(index, dense).sum(dim=0), k, largest)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_a_selection(tmp_path, seed, name, largest):
    index = write(tmp_path, CONFIGS[name], SHAPES, SIZES, heavy(seed=seed), seed=seed)
    groups, dense = queries_of(index, seed=seed)
    scores = expected_scores(index, dense).sum(dim=0)
    generator = torch.Generator().manual_seed(seed)
    for size in (1, 20, 100):
        rows = torch.randperm(COUNT, generator=generator)[:size].sort().values
        best = best_scores(index.scan(groups, 4, rows=rows), 7, largest)
        assert_best(best, scores, min(7, size), largest, rows)


@pytest.mark.parametrize("first, last", [(0, 70), (70, 120), (119, 121), (152, 153)])
def test_shards_without_a_selected_row_are_not_opened(tmp_path, first, last):
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, SIZES)
    groups, dense = queries_of(index)
    rows = torch.arange(first, last)
    for shard in index.reader.shards:
        if not bool(((rows >= shard.start) & (rows < shard.stop)).any()):
            (tmp_path / shard.file).unlink()
    best = best_scores(index.scan(groups, 4, rows=rows), 3)
    assert_best(best, expected_scores(index, dense).sum(dim=0), min(3, len(rows)), True, rows)


@pytest.mark.parametrize("count, queries, workers", [(1, 1, 1), (70, 4, 1), (70, 4, 3), (25, 1, 3), (100, 200, 2)])
def test_every_row_of_a_shard_is_in_one_block(tmp_path, monkeypatch, count, queries, workers):
    """Each thread has one, as long as its scores fit a buffer and a block has the least rows."""
    index = write(tmp_path, plain_config(), SHAPES, SIZES)
    monkeypatch.setattr(scanning, "worker_count", lambda: workers)
    blocks = index.scan({}, queries)._blocks(count)
    rows = [row for block in blocks for row in range(block.start, block.stop)]
    assert rows == list(range(count))
    step = max(10, min(-(-count // workers), 80 // queries))
    assert all(block.stop - block.start == step for block in blocks[:-1])


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("selected", [False, True])
def test_equal_scores_go_to_the_lower_rows(tmp_path, thin, selected, threads):
    """The same gradient everywhere: in every block, at every place in it, whatever comes first."""
    config = plain_config(dtype="float32")
    index = write(tmp_path, config, [(24, 24)], SIZES)
    same = {"m.0.u": torch.randn(1, 1, 24), "m.0.v": torch.randn(1, 1, 24)}
    shards = []
    for shard in index.reader.shards:
        write_tensors(tmp_path / shard.file, {name: part.repeat(shard.rows, 1, 1) for name, part in same.items()})
        shards.append(shard_entry(tmp_path, shard.file, shard.start, shard.rows))
    index.reader.shards = shards
    matrices = torch.randn(3, 24, 2) @ torch.randn(3, 2, 24)
    groups = compress(matrices, torch.arange(3), 8) if thin else [QueryGroup(torch.arange(3), matrices)]
    rows = torch.arange(5, COUNT, 3) if selected else torch.arange(COUNT)
    for largest in (True, False):
        best = best_scores(index.scan({"m.0": groups}, 3, rows=rows if selected else None), 15, largest)
        assert best.indices.tolist() == [rows[:15].tolist()] * 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_factor_that_is_no_number_is_named_with_its_file_and_module(tmp_path, value, threads):
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, SIZES)
    shard = write_number(index, tmp_path, 1, "m.1.v", (49, 0, 3), value)
    groups, _ = queries_of(index)
    message = f"{shard.file}: the factors of 'm.1' are not all finite numbers"
    with pytest.raises(IndexCorruptedError, match=message):
        best_scores(index.scan(groups, 4), 2)
    for shape in ((4, COUNT), (3, 4, COUNT)):
        with pytest.raises(IndexCorruptedError, match=message):
            every_score(index.scan(groups, 4), torch.empty(shape))


def test_scores_beyond_float32_are_an_error(tmp_path):
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, SIZES)
    groups, _ = queries_of(index)
    huge = {name: [replace(group, left=group.left * 1e38) for group in some] for name, some in groups.items()}
    with pytest.raises(IndexCorruptedError, match="are not all finite numbers|beyond the range of float32"):
        every_score(index.scan(huge, 4), torch.empty(4, COUNT))

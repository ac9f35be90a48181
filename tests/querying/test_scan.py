"""Scanning: all scores, or the best of them without scoring all, are those of a dense product in float64."""

from dataclasses import replace

import pytest
import torch
from synthetic import write
from tiny import plain_config

from lorif_hf import InfluenceConfig
from lorif_hf.algebra.scoring import QueryGroup
from lorif_hf.algebra.thin_queries import compress
from lorif_hf.errors import IndexCorruptedError
from lorif_hf.querying.scan import best_scores, every_score
from lorif_hf.storage import layout
from lorif_hf.storage.files import file_entry, header_sha256, write_tensors


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
    """Norms for every ten rows."""
    for module in ("lorif_hf.querying.scan", "lorif_hf.building.block_norms"):
        monkeypatch.setattr(f"{module}.NORM_BLOCK", 10)
    assert layout.NORM_BLOCK == 1000


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


@pytest.mark.parametrize("threads", [1, 3])
def test_all_scores_are_those_of_a_dense_product(tmp_path, config, threads):
    index = write(tmp_path, config, SHAPES, SIZES)
    groups, dense = queries_of(index)
    expected = expected_scores(index, dense)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        apart, together = torch.empty(3, 4, COUNT), torch.empty(4, COUNT)
        every_score(index.scan(groups, 4), apart)
        every_score(index.scan(groups, 4), together)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * float(expected.abs().max())}
    torch.testing.assert_close(apart.double(), expected, **tolerance)
    torch.testing.assert_close(together.double(), expected.sum(dim=0), **tolerance)
    some = torch.tensor([0, 9, 10, 69, 119, 152])
    selected = torch.empty(4, len(some))
    every_score(index.scan(groups, 4, rows=some), selected)
    torch.testing.assert_close(selected.double(), expected.sum(dim=0)[:, some], **tolerance)
    if config.output == "margin":
        every_score(index.scan(groups, 4, weighted=False), together)
        torch.testing.assert_close(together.double() * index.weights, expected.sum(dim=0), **tolerance)


@pytest.mark.parametrize("rank", [None, 1, 4, 99])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("norms", ["random", "heavy-tailed"])
def test_the_best_are_those_of_all_scores(tmp_path, config, norms, largest, rank):
    if config.factor_rank is None and rank is not None:
        return
    index = write(tmp_path, config, SHAPES, SIZES, heavy() if norms == "heavy-tailed" else None)
    for count, k in ((4, 5), (1, 1), (2, COUNT + 1)):
        groups, dense = queries_of(index, count)
        scan = index.scan(groups, count)
        best = best_scores(scan, k, largest, rank)
        assert_best(best, expected_scores(index, dense).sum(dim=0), k, largest)
        if k > COUNT:
            assert scan.examined == {"read": COUNT, "truncated": 0, "scored": COUNT}


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_a_selection(tmp_path, seed, rank):
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, SIZES, heavy(seed=seed), seed=seed)
    groups, dense = queries_of(index, seed=seed)
    scores = expected_scores(index, dense).sum(dim=0)
    generator = torch.Generator().manual_seed(seed)
    for size in (1, 20, 100):
        rows = torch.randperm(COUNT, generator=generator)[:size].sort().values
        best = best_scores(index.scan(groups, 4, rows=rows), 7, True, rank)
        assert_best(best, scores, min(7, size), True, rows)


def test_what_the_norms_rule_out_is_not_read(tmp_path):
    """One shard holds the large gradients. While it is scored the next is read; the last one is never opened."""
    norms = torch.full((COUNT,), 1e-3)
    norms[70:120], norms[120:] = 1.0, 1e-4
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, SIZES, norms)
    groups, dense = queries_of(index)
    (tmp_path / index.reader.shards[2].file).unlink()
    scan = index.scan(
        {name: [replace(g[0], left=g[0].left[1:], numbers=torch.arange(3))] for name, g in groups.items()}, 3
    )
    best = best_scores(scan, 5)
    assert_best(best, expected_scores(index, dense).sum(dim=0)[1:], 5, True)
    assert scan.examined["read"] == 120 and scan.examined["scored"] == 50


def test_blocks_without_hope_are_passed_over_and_selected_rows_in_them_not_read(tmp_path):
    norms = torch.full((COUNT,), 1e-3)
    norms[20:30] = 1.0
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, [COUNT], norms)
    groups, dense = queries_of(index)
    scores = expected_scores(index, dense).sum(dim=0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, blocks are begun before the first is done
    try:
        scan = index.scan(groups, 4)
        assert_best(best_scores(scan, 2), scores, 2, True)
        assert scan.examined == {"read": COUNT, "truncated": 0, "scored": 10}
        rows = torch.arange(0, COUNT, 5)
        scan = index.scan(groups, 4, rows=rows)
        assert_best(best_scores(scan, 1), scores, 1, True, rows)
        assert scan.examined["scored"] <= 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_cut_query_leaves_few_rows_to_score_in_full(tmp_path, rank):
    """Queries of a steeply falling spectrum: the first look decides for almost every row."""
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, [500])
    groups, dense = queries_of(index, count=1, decay=0.2, seed=3)
    for matrices in dense.values():
        matrices[0] /= matrices[0].norm()
    scan = index.scan(groups, 1)
    best = best_scores(scan, 3, rank=rank)
    assert_best(best, expected_scores(index, dense).sum(dim=0), 3, True)
    assert scan.examined["truncated"] >= 250 and scan.examined["scored"] < 350


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("rank", [None, 2])
def test_equal_scores_go_to_the_lower_rows(tmp_path, rank, thin):
    """The same gradient everywhere: in every block, at every place in it, whatever comes first."""
    config = plain_config(dtype="float32")
    index = write(tmp_path, config, [(24, 24)], SIZES)
    same = {"m.0.u": torch.randn(1, 1, 24), "m.0.v": torch.randn(1, 1, 24)}
    shards = []
    for shard in index.reader.shards:
        write_tensors(tmp_path / shard.file, {name: one.repeat(shard.rows, 1, 1) for name, one in same.items()})
        entry = file_entry(tmp_path, shard.file)
        found = replace(
            shard, bytes=entry.bytes, sha256=entry.sha256, header_sha256=header_sha256(tmp_path / shard.file)
        )
        shards.append(found)
    index.reader.shards = [replace(shard, block_norms=()) for shard in shards]
    matrices = torch.randn(3, 24, 2) @ torch.randn(3, 2, 24)
    groups = compress(matrices, torch.arange(3), 8) if thin else [QueryGroup(torch.arange(3), matrices)]
    for largest in (True, False):
        best = best_scores(index.scan({"m.0": groups}, 3), 15, largest, rank)
        assert best.indices.tolist() == [list(range(15))] * 3


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_factor_that_is_no_number_is_found_where_its_row_is_looked_at(tmp_path, value, rank):
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, SIZES)
    shard = index.reader.shards[1]
    tensors = {
        n: t.clone()
        for n, t in ((n, index.reader.store.tensors(shard).read(n)) for n in index.reader.store.tensors(shard).spans)
    }
    tensors["m.1.v"][49, 0, 3] = value
    write_tensors(tmp_path / shard.file, tensors)
    entry = file_entry(tmp_path, shard.file)
    index.reader.shards[1] = replace(shard, bytes=entry.bytes, sha256=entry.sha256, block_norms=())
    groups, _ = queries_of(index)
    message = f"{shard.file}: the factors of 'm.1' are not all finite numbers"
    with pytest.raises(IndexCorruptedError, match=message):
        best_scores(index.scan(groups, 4), 2, rank=rank)
    with pytest.raises(IndexCorruptedError, match=message):
        every_score(index.scan(groups, 4), torch.empty(4, COUNT))
    assert torch.get_num_threads() >= 1


def test_scores_beyond_float32_are_an_error(tmp_path):
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, SIZES)
    groups, _ = queries_of(index)
    huge = {name: [replace(group, left=group.left * 1e38) for group in some] for name, some in groups.items()}
    with pytest.raises(IndexCorruptedError, match="are not all finite numbers|beyond the range of float32"):
        every_score(index.scan(huge, 4), torch.empty(4, COUNT))


def test_norms_of_another_number_of_gradients_are_refused(tmp_path):
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, SIZES)
    first, *others = index.reader.shards
    index.reader.shards = [replace(first, block_norms=tuple((1.0,) for _ in first.block_norms)), *others]
    groups, _ = queries_of(index)
    with pytest.raises(IndexCorruptedError, match=f"{first.file} has block_norms of 1 gradients"):
        best_scores(index.scan(groups, 4), 2)

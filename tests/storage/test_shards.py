from pathlib import Path

import pytest
import torch
from curvature_file import module_tensors
from factor_shards import shard_entry

from lorif_hf.errors import IndexCorruptedError
from lorif_hf.storage import files
from lorif_hf.storage.layout import CURVATURE, FactorShard, ModuleEntry, TensorEntry, factor_file
from lorif_hf.storage.shards import ShardReader, write_shard
from lorif_hf.storage.store import LocalStore


MODULES = [ModuleEntry("a.b", "linear", 8, 12, 2, 3, "0" * 64), ModuleEntry("c", "linear", 4, 4, 4, 4, "0" * 64)]
SIZES, RANK = [3, 1, 2], 2


@pytest.fixture(autouse=True)
def forget_verified_files(monkeypatch):
    monkeypatch.setattr(files, "_verified", {})


def layout_of(dtype=torch.bfloat16, rank=RANK):
    return lambda d1, d2: {"u": (dtype, (d1, rank)), "v": (dtype, (d2, rank))}


def random_factors(rows, dtype=torch.bfloat16, rank=RANK, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        module.name: {
            side: torch.randn(rows, d, rank, generator=generator).to(dtype)
            for side, d in (("u", module.d1), ("v", module.d2))
        }
        for module in MODULES
    }


def reader_of(folder, shards, layout=None):
    return ShardReader(LocalStore(folder), shards, None, layout or layout_of())


def write_shards(folder, factors, sizes=SIZES, weights=None):
    shards, start = [], 0
    for i, rows in enumerate(sizes):
        file = factor_file(i)
        part = slice(start, start + rows)
        parts = {name: {side: tensor[part] for side, tensor in some.items()} for name, some in factors.items()}
        write_shard(folder / file, parts, None if weights is None else weights[part])
        shards.append(shard_entry(folder, file, start, rows))
        start += rows
    return shards


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_come_back_bit_by_bit_in_row_order(tmp_path, dtype):
    factors = random_factors(6, dtype)
    reader = reader_of(tmp_path, write_shards(tmp_path, factors), layout_of(dtype))
    for module in MODULES:
        for _ in range(2):  # once per pass
            blocks = [parts[module.name] for _, parts in reader.stream([module], reader.tasks())]
            assert [len(block["u"]) for block in blocks] == SIZES
            assert all(list(block) == ["u", "v"] for block in blocks)
            for side in ("u", "v"):
                rows = torch.cat([block[side] for block in blocks])
                assert rows.dtype == dtype and torch.equal(rows, factors[module.name][side])


@pytest.mark.parametrize("rows", [[0], [2], [0, 1, 2], [0, 2], [1, 2]], ids=str)
def test_rows_of_a_shard_are_read_alone(tmp_path, rows):
    factors = random_factors(6)
    shards = write_shards(tmp_path, factors)
    loaded = reader_of(tmp_path, shards).load(shards[0], MODULES, torch.tensor(rows))
    for module in MODULES:
        assert all(torch.equal(loaded[module.name][side], factors[module.name][side][rows]) for side in "uv")


def test_the_check_looks_at_the_first_shard_that_holds_a_row_and_reads_nothing_of_it(tmp_path):
    shards = write_shards(tmp_path, random_factors(6))
    reader = reader_of(tmp_path, shards)
    reader.check(MODULES)
    (tmp_path / shards[1].file).unlink()
    reader.check(MODULES)
    reader.check(MODULES, torch.tensor([0, 3]))
    with pytest.raises(IndexCorruptedError, match=f"{shards[1].file}: it is missing"):
        reader.check(MODULES, torch.tensor([3, 4]))
    larger = ModuleEntry("a.b", "linear", 2**40, 12, 2**39, 3, "0" * 64)
    with pytest.raises(IndexCorruptedError, match=rf"the manifest makes it torch.bfloat16 \(2, {2**39}, 2\)"):
        reader.check([larger], torch.tensor([5]))


def test_one_shard_can_be_read_alone_while_another_is_damaged(tmp_path):
    shards = write_shards(tmp_path, random_factors(6))
    (tmp_path / shards[0].file).unlink()
    reader = reader_of(tmp_path, shards)
    assert reader.load(shards[2], [MODULES[1]])[MODULES[1].name]["u"].shape == (2, 4, RANK)
    with pytest.raises(IndexCorruptedError, match=f"{shards[0].file}: it is missing"):
        reader.load(shards[0], [MODULES[1]])[MODULES[1].name]


def test_each_file_is_checked_before_its_first_use(tmp_path):
    shards = write_shards(tmp_path, random_factors(6))
    data = bytearray((tmp_path / shards[1].file).read_bytes())
    data[-1] ^= 128
    (tmp_path / shards[1].file).write_bytes(data)
    files._verified.clear()
    reader = reader_of(tmp_path, shards)
    blocks = reader.stream(MODULES[:1], reader.tasks())
    assert len(next(blocks)[1]["a.b"]["u"]) == 3
    with pytest.raises(IndexCorruptedError, match=rf"{shards[1].file}: its SHA-256 is"):
        next(blocks)


@pytest.mark.parametrize("change", ["dtype", "rank", "rows", "module"])
def test_factors_of_another_kind_than_the_manifests_are_refused(tmp_path, change):
    factors, dtype, rank = random_factors(6), torch.bfloat16, RANK
    shards = write_shards(tmp_path, factors)
    module, shard = MODULES[0], shards[0]
    expected = r"'a.b.u' is torch.bfloat16 \(3, 2, 2\), the manifest makes it "
    if change == "dtype":
        dtype, expected = torch.float16, expected + r"torch.float16 \(3, 2, 2\)"
    elif change == "rank":
        rank, expected = 1, expected + r"torch.bfloat16 \(3, 2, 1\)"
    elif change == "rows":
        shard, expected = (
            FactorShard(shard.file, shard.bytes, shard.sha256, 0, 4, shard.header_sha256),
            expected + r"torch.bfloat16 \(4, 2, 2\)",
        )
    else:
        module, expected = ModuleEntry("z", "linear", 8, 12, 2, 3, "0" * 64), "it has no tensor 'z.u'"
    with pytest.raises(IndexCorruptedError, match=expected) as caught:
        reader_of(tmp_path, [shard], layout_of(dtype, rank)).load(shard, [module])
    assert caught.value.file == shard.file


def test_the_two_sides_are_not_taken_for_one_another(tmp_path):
    factors = {name: {"u": some["v"], "v": some["u"]} for name, some in random_factors(6).items()}
    shards = write_shards(tmp_path, factors)
    with pytest.raises(IndexCorruptedError, match=r"'a.b.u' is .* \(3, 3, 2\), the manifest makes it .* \(3, 2, 2\)"):
        reader_of(tmp_path, shards).load(shards[0], [MODULES[0]])


def test_a_missing_curvature_file_is_named(tmp_path):
    reader = ShardReader(LocalStore(tmp_path), [], TensorEntry(CURVATURE, 10, "0" * 64, "0" * 64), layout_of())
    with pytest.raises(IndexCorruptedError, match=f"{CURVATURE}: it is missing"):
        reader.curvature(MODULES[0])


TENSORS = {
    "a.b.vectors": torch.randn(6, 2, generator=torch.Generator().manual_seed(0)),
    "a.b.values": torch.tensor([2.0, 0.0]),
    "a.b.damping": torch.tensor(0.1234567890123, dtype=torch.float64),
    "a.b.nothing": torch.zeros(0, 3),
    "c.vectors": torch.ones(16, 1),
}


def test_tensors_of_a_module_come_back_bit_by_bit(tmp_path):
    stored = module_tensors(tmp_path, TENSORS, MODULES[0])
    for name in ("vectors", "values", "damping", "nothing"):
        expected = TENSORS[f"a.b.{name}"]
        assert stored.shape(name) == expected.shape
        tensor = stored.read(name, tuple(expected.shape), expected.dtype)
        assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype
    assert torch.equal(stored.read("values", (2,), least=0), TENSORS["a.b.values"])
    other = module_tensors(tmp_path, TENSORS, MODULES[1])
    assert torch.equal(other.read("vectors", (16, 1)), TENSORS["c.vectors"])


IMPOSSIBLE = {
    "another shape": (torch.ones(3), {}, r"tensor 'a.b.x' is torch.float32 \(3,\), the manifest makes it .* \(2,\)"),
    "one more dimension": (torch.ones(2, 1), {}, r"is torch.float32 \(2, 1\), the manifest makes it"),
    "a scalar": (torch.tensor(1.0), {}, r"is torch.float32 \(\), the manifest makes it torch.float32 \(2,\)"),
    "float64": (torch.ones(2, dtype=torch.float64), {}, "is torch.float64 .* makes it torch.float32"),
    "integers": (torch.ones(2, dtype=torch.int64), {}, "is torch.int64 .* makes it torch.float32"),
    "float32": (torch.ones(2), {"dtype": torch.float64}, "is torch.float32 .* makes it torch.float64"),
    "NaN": (torch.tensor([torch.nan, 1]), {}, r"tensor 'a.b.x' holds NaN, infinity\."),
    "infinity": (torch.tensor([torch.inf, 1]), {}, r"tensor 'a.b.x' holds NaN, infinity\."),
    "opposite infinities": (torch.tensor([torch.inf, -torch.inf]), {}, r"holds NaN, infinity\."),
    "NaN beside a least": (torch.tensor([torch.nan, 1]), {"least": 0}, r"holds NaN, infinity or numbers below 0\."),
    "below the least": (torch.tensor([1, -1e-30]), {"least": 0}, r"holds NaN, infinity or numbers below 0\."),
    "below another least": (torch.tensor([1, 0.0]), {"least": 0.5}, r"holds NaN, infinity or numbers below 0.5\."),
    "absent": (None, {}, "it has no tensor 'a.b.x'"),
}


@pytest.mark.parametrize("value, options, message", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_tensor_that_cannot_be_is_refused(tmp_path, value, options, message):
    tensors = {**TENSORS, **({} if value is None else {"a.b.x": value})}
    stored = module_tensors(tmp_path, tensors, MODULES[0])
    with pytest.raises(IndexCorruptedError, match=message) as caught:
        stored.read("x", (2,), **options)
    assert caught.value.file == CURVATURE
    if value is None:
        with pytest.raises(IndexCorruptedError, match=message):
            stored.shape("x")


def test_numbers_below_zero_are_fine_where_no_least_is_asked_for(tmp_path):
    stored = module_tensors(tmp_path, {"a.b.x": torch.tensor([-5.0, 1.0])}, MODULES[0])
    assert stored.read("x", (2,)).tolist() == [-5.0, 1.0] == stored.read("x", (2,), least=-5).tolist()


def test_any_parts_in_any_dtype_are_stored_and_streamed_by_rows(tmp_path):
    """What a codec of few bits stores: bytes, and a scale of another dtype; here three parts of odd shapes."""

    def layout(d1, d2):
        return {"u": (torch.uint8, (2, d1 + 1)), "g": (torch.float32, (d1, d2)), "u_scale": (torch.bfloat16, (2,))}

    generator = torch.Generator().manual_seed(0)
    parts = {
        module.name: {
            name: torch.randint(0, 256, (6, *shape), generator=generator).to(dtype)
            for name, (dtype, shape) in layout(module.d1, module.d2).items()
        }
        for module in MODULES
    }
    reader = reader_of(tmp_path, write_shards(tmp_path, parts), layout)
    for rows, expected in ((None, [0, 3, 4]), (torch.tensor([0, 2, 5]), [0, 2])):
        found = list(reader.stream(MODULES, reader.tasks(rows)))
        assert [task.position for task, _ in found] == expected
        for task, stored in found:
            position, shard, chosen = task.position, task.shard, task.chosen
            at = torch.arange(shard.start, shard.stop) if chosen is None else shard.start + chosen
            assert rows is None or torch.equal(at, rows[position : position + len(at)])
            assert list(stored) == [module.name for module in MODULES]
            for name, some in stored.items():
                assert list(some) == ["u", "g", "u_scale"]
                assert all(torch.equal(tensor, parts[name][part][at]) for part, tensor in some.items())


def test_a_shard_is_asked_for_when_the_one_before_it_is_given(tmp_path):
    """Not sooner: by then it may be known that it is not wanted."""
    reader = reader_of(tmp_path, write_shards(tmp_path, random_factors(6)))
    asked = []

    def tasks():
        for task in reversed(reader.tasks()):
            asked.append(task.position)
            yield task

    given = []
    for task, parts in reader.stream(MODULES[:1], tasks()):
        given.append(task.position)
        assert list(parts) == ["a.b"] and asked == [4, 3, 0][: len(given) + 1]
    assert given == [4, 3, 0]
    assert list(reader.stream(MODULES, iter(()))) == []


def test_an_error_of_the_thread_that_reads_ahead_reaches_the_caller(tmp_path):
    shards = write_shards(tmp_path, random_factors(6))
    (tmp_path / shards[1].file).unlink()
    reader = reader_of(tmp_path, shards)
    stream = reader.stream(MODULES, reader.tasks())
    next(stream)
    with pytest.raises(IndexCorruptedError, match=f"{shards[1].file}: it is missing"):
        next(stream)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of maps")
def test_no_shard_stays_open(tmp_path):
    """A shard is mapped while its tensors are held: thousands of shards need neither files nor memory."""
    reader = reader_of(tmp_path, write_shards(tmp_path, random_factors(6)))
    for _, parts in reader.stream(MODULES, reader.tasks()):
        assert len(parts) == 2
        held = Path("/proc/self/maps").read_text().count(str(tmp_path))
        assert 1 <= held <= 2
    del parts
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_weights_come_back_by_rows(tmp_path):
    weights = torch.rand(6, generator=torch.Generator().manual_seed(0))
    shards = write_shards(tmp_path, random_factors(6), weights=weights)
    reader = reader_of(tmp_path, shards)
    assert torch.equal(torch.cat([reader.weights(shard) for shard in shards]), weights)
    assert torch.equal(reader.weights(shards[0], torch.tensor([0, 2])), weights[[0, 2]])
    # They do not stand in the way of the factors.
    assert list(reader.load(shards[0], MODULES)) == [module.name for module in MODULES]


WEIGHTS = {
    "negative": (torch.tensor([0.5, -1e-9, 1.0]), "tensor 'weights' holds numbers that no weight has"),
    "NaN": (torch.tensor([0.5, torch.nan, 1.0]), "tensor 'weights' holds numbers that no weight has"),
    "infinite": (torch.tensor([0.5, torch.inf, 1.0]), "tensor 'weights' holds numbers that no weight has"),
    "float64": (torch.ones(3, dtype=torch.float64), r"'weights' is torch.float64 \(3,\), .* torch.float32 \(3,\)"),
    "too few": (torch.ones(2), r"'weights' is torch.float32 \(2,\), the manifest makes it torch.float32 \(3,\)"),
    "a column": (torch.ones(3, 1), r"'weights' is torch.float32 \(3, 1\), the manifest makes it"),
    "absent": (None, "it has no tensor 'weights'"),
}


@pytest.mark.parametrize("value, message", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_cannot_be_are_refused(tmp_path, value, message):
    shards = write_shards(tmp_path, random_factors(3), sizes=[3], weights=value)
    with pytest.raises(IndexCorruptedError, match=message) as caught:
        reader_of(tmp_path, shards).weights(shards[0])
    assert caught.value.file == shards[0].file

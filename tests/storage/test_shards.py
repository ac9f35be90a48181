from pathlib import Path

import pytest
import torch

from lorif_hf.errors import IndexCorruptedError
from lorif_hf.storage import files
from lorif_hf.storage.files import file_entry, header_sha256, write_tensors
from lorif_hf.storage.layout import CURVATURE, FactorShard, FileEntry, ModuleEntry, factor_file
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
        file = factor_file(i, len(sizes))
        part = slice(start, start + rows)
        parts = {name: {side: tensor[part] for side, tensor in some.items()} for name, some in factors.items()}
        write_shard(folder / file, parts, None if weights is None else weights[part])
        entry = file_entry(folder, file)
        shards.append(FactorShard(file, entry.bytes, entry.sha256, start, rows, header_sha256(folder / file)))
        start += rows
    return shards


def curvature_tensors(rank=2):
    tensors = {}
    for module in MODULES:
        tensors[f"{module.name}.eigenvectors"] = torch.linalg.qr(torch.randn(module.d1 * module.d2, rank)).Q
        tensors[f"{module.name}.eigenvalues"] = torch.arange(rank, 0, -1).float()
        tensors[f"{module.name}.damping"] = torch.tensor(0.1234567890123, dtype=torch.float64)
        tensors[f"{module.name}.trace"] = torch.tensor(7.5, dtype=torch.float64)
    return tensors


def read_curvature(folder, tensors, module=MODULES[0]):
    write_tensors(folder / CURVATURE, tensors)
    return ShardReader(LocalStore(folder), [], file_entry(folder, CURVATURE), layout_of()).eigenpairs(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_come_back_bit_by_bit_in_row_order(tmp_path, dtype):
    factors = random_factors(6, dtype)
    reader = reader_of(tmp_path, write_shards(tmp_path, factors), layout_of(dtype))
    for module in MODULES:
        blocks = list(reader.blocks(module))
        assert [len(block["u"]) for block in blocks] == SIZES
        for side in ("u", "v"):
            found = torch.cat([block[side] for block in blocks])
            assert found.dtype == dtype and torch.equal(found, factors[module.name][side])


def test_blocks_can_be_read_once_per_pass(tmp_path):
    reader = reader_of(tmp_path, write_shards(tmp_path, random_factors(6)))
    first, second = list(reader.blocks(MODULES[0])), list(reader.blocks(MODULES[0]))
    assert len(first) == len(second) == len(SIZES)
    for one, two in zip(first, second, strict=True):
        assert list(one) == list(two) == ["u", "v"] and all(torch.equal(one[side], two[side]) for side in one)


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
    blocks = reader_of(tmp_path, shards).blocks(MODULES[0])
    assert len(next(blocks)["u"]) == 3
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


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_curvature_comes_back_bit_by_bit(tmp_path, rank):
    tensors = curvature_tensors(rank)
    for module in MODULES:
        vectors, values, damping, trace = read_curvature(tmp_path, tensors, module)
        assert torch.equal(vectors, tensors[f"{module.name}.eigenvectors"]) and vectors.shape[1] == rank
        assert torch.equal(values, tensors[f"{module.name}.eigenvalues"])
        assert (damping, trace) == (0.1234567890123, 7.5)


def test_a_layer_without_curvature_of_its_own_is_allowed(tmp_path):
    tensors = curvature_tensors()
    tensors["a.b.eigenvalues"], tensors["a.b.trace"] = torch.zeros(2), torch.tensor(0.0, dtype=torch.float64)
    assert float(read_curvature(tmp_path, tensors)[1].sum()) == 0


f32, f64 = torch.float32, torch.float64
IMPOSSIBLE = {
    "eigenvectors of another dimension": ("eigenvectors", torch.zeros(5, 2), r"\(5, 2\), the manifest .* \(6, 2\)"),
    "more eigenvectors than eigenvalues": ("eigenvectors", torch.zeros(6, 3), r"\(6, 3\), the manifest .* \(6, 2\)"),
    "eigenvalues in float64": ("eigenvalues", torch.ones(2, dtype=f64), "is torch.float64"),
    "a scalar eigenvalue": ("eigenvalues", torch.tensor(1.0), "the manifest makes it"),
    "eigenvalues in a matrix": ("eigenvalues", torch.ones(2, 1), r"is torch.float32 \(2, 1\)"),
    "a damping in float32": ("damping", torch.tensor(1.0), "is torch.float32"),
    "a damping per direction": ("damping", torch.ones(2, dtype=f64), r"is torch.float64 \(2,\)"),
    "a NaN eigenvector": ("eigenvectors", torch.full((6, 2), torch.nan), "numbers that no curvature has"),
    "an infinite eigenvalue": ("eigenvalues", torch.tensor([torch.inf, 1]), "numbers that no curvature has"),
    "opposite infinities": ("eigenvectors", torch.tensor([[1.0, -1]] * 6) * torch.inf, "no curvature has"),
    "a negative eigenvalue": ("eigenvalues", torch.tensor([5.0, -1e-3]), "'a.b.eigenvalues' holds numbers"),
    "no damping": ("damping", torch.tensor(0.0, dtype=f64), "the damping of 'a.b' is 0.0, not positive"),
    "a negative damping": ("damping", torch.tensor(-1.0, dtype=f64), "'a.b.damping' holds numbers"),
    "a NaN damping": ("damping", torch.tensor(torch.nan, dtype=f64), "'a.b.damping' holds numbers"),
    "a negative trace": ("trace", torch.tensor(-1.0, dtype=f64), "'a.b.trace' holds numbers"),
}


@pytest.mark.parametrize("part, value, message", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_curvature_that_cannot_be_is_refused(tmp_path, part, value, message):
    with pytest.raises(IndexCorruptedError, match=message) as caught:
        read_curvature(tmp_path, {**curvature_tensors(), f"a.b.{part}": value})
    assert caught.value.file == CURVATURE


@pytest.mark.parametrize("part", ["eigenvectors", "eigenvalues", "damping", "trace"])
def test_a_missing_part_of_the_curvature_is_named(tmp_path, part):
    tensors = curvature_tensors()
    del tensors[f"a.b.{part}"]
    with pytest.raises(IndexCorruptedError, match=f"{CURVATURE}: it has no tensor 'a.b.{part}'"):
        read_curvature(tmp_path, tensors)


def test_a_missing_curvature_file_is_named(tmp_path):
    reader = ShardReader(LocalStore(tmp_path), [], FileEntry(CURVATURE, 10, "0" * 64), layout_of())
    with pytest.raises(IndexCorruptedError, match=f"{CURVATURE}: it is missing"):
        reader.eigenpairs(MODULES[0])
    with pytest.raises(IndexCorruptedError, match=f"{CURVATURE}: it is missing"):
        reader.whiteners(MODULES[0])


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


def whitener_tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        f"{module.name}.{side}_whitener": torch.randn(d, d, generator=generator)
        for module in MODULES
        for side, d in (("in", module.d1), ("out", module.d2))
    }


def read_whiteners(folder, tensors, module=MODULES[0]):
    write_tensors(folder / CURVATURE, tensors)
    return ShardReader(LocalStore(folder), [], file_entry(folder, CURVATURE), layout_of()).whiteners(module)


def test_whiteners_come_back_bit_by_bit(tmp_path):
    tensors = whitener_tensors()
    for module in MODULES:
        for side, found in zip(("in", "out"), read_whiteners(tmp_path, tensors, module), strict=True):
            assert torch.equal(found, tensors[f"{module.name}.{side}_whitener"])


WHITENERS = {
    "of another size": (torch.eye(3), r"'a.b.in_whitener' is .* \(3, 3\), the manifest makes it .* \(2, 2\)"),
    "not square": (torch.ones(2, 3), r"\(2, 3\), the manifest makes it torch.float32 \(2, 2\)"),
    "float64": (torch.eye(2, dtype=torch.float64), "is torch.float64"),
    "NaN": (torch.full((2, 2), torch.nan), "'a.b.in_whitener' holds numbers that no whitener has"),
    "infinite": (torch.tensor([[torch.inf, 0], [0, 1]]), "'a.b.in_whitener' holds numbers that no whitener has"),
    "opposite infinities": (torch.tensor([[torch.inf, 0], [0, -torch.inf]]), "numbers that no whitener has"),
    "absent": (None, "it has no tensor 'a.b.in_whitener'"),
}


@pytest.mark.parametrize("value, message", WHITENERS.values(), ids=WHITENERS)
def test_a_whitener_that_cannot_be_is_refused(tmp_path, value, message):
    tensors = {**whitener_tensors(), "a.b.in_whitener": value}
    with pytest.raises(IndexCorruptedError, match=message) as caught:
        read_whiteners(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    assert caught.value.file == CURVATURE

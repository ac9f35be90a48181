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


def random_factors(rows, dtype=torch.bfloat16, rank=RANK, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        module.name: tuple(torch.randn(rows, d, rank, generator=generator).to(dtype) for d in (module.d1, module.d2))
        for module in MODULES
    }


def write_shards(folder, factors, sizes=SIZES):
    shards, start = [], 0
    for i, rows in enumerate(sizes):
        file = factor_file(i, len(sizes))
        part = slice(start, start + rows)
        write_shard(folder / file, {name: (u[part], v[part]) for name, (u, v) in factors.items()})
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
    return ShardReader(LocalStore(folder), [], file_entry(folder, CURVATURE), torch.bfloat16, RANK).curvature(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_come_back_bit_by_bit_in_row_order(tmp_path, dtype):
    factors = random_factors(6, dtype)
    reader = ShardReader(LocalStore(tmp_path), write_shards(tmp_path, factors), None, dtype, RANK)
    for module in MODULES:
        blocks = list(reader.blocks(module))
        assert [len(left) for left, _ in blocks] == SIZES
        for side in (0, 1):
            found = torch.cat([block[side] for block in blocks])
            assert found.dtype == dtype and torch.equal(found, factors[module.name][side])


def test_blocks_can_be_read_once_per_pass(tmp_path):
    reader = ShardReader(LocalStore(tmp_path), write_shards(tmp_path, random_factors(6)), None, torch.bfloat16, RANK)
    first, second = list(reader.blocks(MODULES[0])), list(reader.blocks(MODULES[0]))
    assert len(first) == len(second) == len(SIZES)
    assert all(
        torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_one_shard_can_be_read_alone_while_another_is_damaged(tmp_path):
    shards = write_shards(tmp_path, random_factors(6))
    (tmp_path / shards[0].file).unlink()
    reader = ShardReader(LocalStore(tmp_path), shards, None, torch.bfloat16, RANK)
    assert reader.load(shards[2], [MODULES[1]])[MODULES[1].name][0].shape == (2, 4, RANK)
    with pytest.raises(IndexCorruptedError, match=f"{shards[0].file}: it is missing"):
        reader.load(shards[0], [MODULES[1]])[MODULES[1].name]


def test_each_file_is_checked_before_its_first_use(tmp_path):
    shards = write_shards(tmp_path, random_factors(6))
    data = bytearray((tmp_path / shards[1].file).read_bytes())
    data[-1] ^= 128
    (tmp_path / shards[1].file).write_bytes(data)
    files._verified.clear()
    blocks = ShardReader(LocalStore(tmp_path), shards, None, torch.bfloat16, RANK).blocks(MODULES[0])
    assert len(next(blocks)[0]) == 3
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
        ShardReader(LocalStore(tmp_path), [shard], None, dtype, rank).load(shard, [module])[module.name]
    assert caught.value.file == shard.file


def test_the_two_sides_are_not_taken_for_one_another(tmp_path):
    factors = {name: (v, u) for name, (u, v) in random_factors(6).items()}
    shards = write_shards(tmp_path, factors)
    with pytest.raises(IndexCorruptedError, match=r"'a.b.u' is .* \(3, 3, 2\), the manifest makes it .* \(3, 2, 2\)"):
        ShardReader(LocalStore(tmp_path), shards, None, torch.bfloat16, RANK).load(shards[0], [MODULES[0]])[
            MODULES[0].name
        ]


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
    reader = ShardReader(LocalStore(tmp_path), [], FileEntry(CURVATURE, 10, "0" * 64), torch.bfloat16, RANK)
    with pytest.raises(IndexCorruptedError, match=f"{CURVATURE}: it is missing"):
        reader.curvature(MODULES[0])

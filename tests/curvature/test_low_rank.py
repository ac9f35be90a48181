"""The damped Hessian's eigenpairs: fitted, read back and applied to queries, against dense float64."""

import pytest
import torch
from curvature_file import module_tensors
from dense import off
from spectra import COLUMNS, DIM, ROWS, gradients_of, held, random_factors, truncated_hessian

from lorif_hf import InfluenceConfig
from lorif_hf.algebra.planning import plan_fit, plan_method
from lorif_hf.building.fitting import shape_of
from lorif_hf.codecs import FactoredCodec
from lorif_hf.curvature import LowRankCurvature, curvature_of
from lorif_hf.curvature.kronecker import MomentsPass
from lorif_hf.errors import IndexCorruptedError
from lorif_hf.storage.layout import CURVATURE, ModuleEntry


ENTRY = ModuleEntry("a.b", "linear", ROWS, COLUMNS, ROWS, COLUMNS, "")
OTHER = ModuleEntry("c", "linear", 4, 4, 4, 4, "")


def curvature(rank=2, damping=0.5):
    return LowRankCurvature(rank, damping, None)


@pytest.mark.parametrize("dense", [False, True], ids=["factors", "dense"])
@pytest.mark.parametrize("rank", [3, None])
@pytest.mark.parametrize("count", [20, 200], ids=["N < D", "N > D"])
def test_a_fit_is_the_truncated_hessian_of_what_is_stored(tmp_path, count, rank, dense):
    left, right = random_factors(count, 2)
    gradients = gradients_of(left, right)
    stored = held(left @ right.mT, None, 7) if dense else held(left, right, 7)
    fitted = curvature(rank, damping=0.3).fit(stored, {}, None)
    kept = rank or min(count, DIM)
    hessian = truncated_hessian(gradients, kept, 0.3)
    influence = (gradients @ torch.linalg.solve(hessian, gradients.T)).diagonal()
    assert fitted.self_influence.shape == (count,) and off(fitted.self_influence, influence) < 1e-3
    assert float(fitted.tensors["trace"]) == pytest.approx(float(gradients.square().sum()), rel=1e-6)
    assert float(fitted.tensors["damping"]) == pytest.approx(0.3 * float(fitted.tensors["trace"]) / DIM, rel=1e-9)

    # Through the file, to a query.
    stored = module_tensors(tmp_path, {f"a.b.{name}": tensor for name, tensor in fitted.tensors.items()}, ENTRY)
    tensors = curvature(rank).load(stored, ENTRY)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "eigenvectors": torch.float32,
        "eigenvalues": torch.float32,
        "damping": torch.float64,
        "trace": torch.float64,
    }
    queries = torch.randn(4, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    solved = curvature(rank).precondition(queries, tensors)
    assert solved.shape == queries.shape and solved.dtype == torch.float32
    # What a query has outside of all stored gradients meets none of them: it may be kept or not.
    expected = queries.double().flatten(1) @ torch.linalg.solve(hessian, gradients.T)
    assert off(solved.double().flatten(1) @ gradients.T, expected) < 1e-3


@pytest.mark.parametrize("memory", [None, 1], ids=["enough", "as little as works"])
def test_self_influence_is_that_of_the_kept_eigenpairs(memory):
    """With little memory what is read at a time shrinks with the block, down to one example."""
    left, right = random_factors(200, 2)
    fitted = curvature(3).fit(held(left, right, 50, 50), {}, memory)
    vectors, values = fitted.tensors["eigenvectors"].double(), fitted.tensors["eigenvalues"].double()
    hessian = vectors * values @ vectors.T + float(fitted.tensors["damping"]) * torch.eye(DIM, dtype=torch.float64)
    gradients = gradients_of(left, right)
    expected = (gradients @ torch.linalg.solve(hessian, gradients.T)).diagonal()
    assert off(fitted.self_influence, expected) < 1e-4


@pytest.mark.parametrize("max_memory", [None, 1 << 30])
def test_the_cost_of_a_sketch_is_that_of_its_plan(max_memory):
    entry = ModuleEntry("wide", "linear", 192, 192, 192, 192, "")
    stored = shape_of(entry, 1_000_000, FactoredCodec(1, torch.bfloat16))
    plan = plan_method(stored, 512, "nystroem", max_memory=max_memory or 2 << 30)
    cost = curvature_of(InfluenceConfig.paper()).cost(stored, max_memory)
    assert (cost.memory, cost.flops, cost.stored) == (plan.memory, plan.flops, 4 * 192 * 192 * 512)


def test_the_cost_of_an_exact_fit_is_that_of_its_plan():
    stored = shape_of(ENTRY, 1000, FactoredCodec(1, torch.bfloat16))
    cost, plan = curvature(None).cost(stored, None), plan_fit(stored, None)
    assert plan.method == "gram" and plan.rank == DIM
    assert (cost.memory, cost.flops, cost.stored) == (plan.memory, plan.flops, 4 * DIM * DIM)


def test_the_config_sets_rank_damping_and_the_first_pass():
    plain = curvature_of(InfluenceConfig.paper(curvature_rank=7, damping=0.25))
    assert plain == LowRankCurvature(7, 0.25, None) and not plain.keeps_rank
    whitened = InfluenceConfig.paper(whitening="kronecker", whitening_samples=9, whitening_damping=0.2)
    assert curvature_of(whitened).first_pass == MomentsPass(9, 0.2)


def curvature_tensors(rank=2):
    tensors = {}
    generator = torch.Generator().manual_seed(0)
    for module in (ENTRY, OTHER):
        vectors = torch.randn(module.d1 * module.d2, rank, generator=generator)
        tensors[f"{module.name}.eigenvectors"] = torch.linalg.qr(vectors).Q
        tensors[f"{module.name}.eigenvalues"] = torch.arange(rank, 0, -1).float()
        tensors[f"{module.name}.damping"] = torch.tensor(0.1234567890123, dtype=torch.float64)
        tensors[f"{module.name}.trace"] = torch.tensor(7.5, dtype=torch.float64)
    return tensors


def load(folder, tensors, module=ENTRY):
    return curvature().load(module_tensors(folder, tensors, module), module)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_curvature_comes_back_bit_by_bit(tmp_path, rank):
    tensors = curvature_tensors(rank)
    for module in (ENTRY, OTHER):
        loaded = load(tmp_path, tensors, module)
        assert loaded["eigenvectors"].shape == (module.d1 * module.d2, rank)
        assert list(loaded) == ["eigenvectors", "eigenvalues", "damping", "trace"]
        for part, tensor in loaded.items():
            expected = tensors[f"{module.name}.{part}"]
            assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype


def test_a_layer_without_curvature_of_its_own_is_allowed(tmp_path):
    tensors = curvature_tensors()
    tensors["a.b.eigenvalues"], tensors["a.b.trace"] = torch.zeros(2), torch.tensor(0.0, dtype=torch.float64)
    assert float(load(tmp_path, tensors)["eigenvalues"].sum()) == 0


f64 = torch.float64
BELOW = r"holds NaN, infinity or numbers below 0\."
IMPOSSIBLE = {
    "eigenvectors of another dimension": ("eigenvectors", torch.zeros(5, 2), r"\(5, 2\), the manifest .* \(48, 2\)"),
    "more eigenvectors than eigenvalues": ("eigenvectors", torch.zeros(48, 3), r"\(48, 3\), the .* \(48, 2\)"),
    "eigenvectors in float64": ("eigenvectors", torch.zeros(48, 2, dtype=f64), "is torch.float64"),
    "eigenvalues in float64": ("eigenvalues", torch.ones(2, dtype=f64), "is torch.float64"),
    "a scalar eigenvalue": ("eigenvalues", torch.tensor(1.0), "the manifest makes it"),
    "eigenvalues in a matrix": ("eigenvalues", torch.ones(2, 1), r"is torch.float32 \(2, 1\)"),
    "a damping in float32": ("damping", torch.tensor(1.0), "is torch.float32"),
    "a damping per direction": ("damping", torch.ones(2, dtype=f64), r"is torch.float64 \(2,\)"),
    "a NaN eigenvector": ("eigenvectors", torch.full((48, 2), torch.nan), r"'a.b.eigenvectors' .* NaN, infinity\."),
    "an infinite eigenvalue": ("eigenvalues", torch.tensor([torch.inf, 1]), f"'a.b.eigenvalues' {BELOW}"),
    "opposite infinities": ("eigenvectors", torch.tensor([[1.0, -1]] * 48) * torch.inf, "holds NaN, infinity"),
    "a negative eigenvalue": ("eigenvalues", torch.tensor([5.0, -1e-3]), f"'a.b.eigenvalues' {BELOW}"),
    "no damping": ("damping", torch.tensor(0.0, dtype=f64), "the damping of 'a.b' is 0.0, not positive"),
    "a negative damping": ("damping", torch.tensor(-1.0, dtype=f64), f"'a.b.damping' {BELOW}"),
    "a NaN damping": ("damping", torch.tensor(torch.nan, dtype=f64), f"'a.b.damping' {BELOW}"),
    "a negative trace": ("trace", torch.tensor(-1.0, dtype=f64), f"'a.b.trace' {BELOW}"),
}


@pytest.mark.parametrize("part, value, message", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_curvature_that_cannot_be_is_refused(tmp_path, part, value, message):
    with pytest.raises(IndexCorruptedError, match=message) as caught:
        load(tmp_path, {**curvature_tensors(), f"a.b.{part}": value})
    assert caught.value.file == CURVATURE


@pytest.mark.parametrize("part", ["eigenvectors", "eigenvalues", "damping", "trace"])
def test_a_missing_part_of_the_curvature_is_named(tmp_path, part):
    tensors = curvature_tensors()
    del tensors[f"a.b.{part}"]
    with pytest.raises(IndexCorruptedError, match=f"{CURVATURE}: it has no tensor 'a.b.{part}'"):
        load(tmp_path, tensors)

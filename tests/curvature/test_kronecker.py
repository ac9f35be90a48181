"""The Kronecker curvature: its first pass, what it keeps of a layer, and what it does to gradients."""

import pytest
import torch
from curvature_file import module_tensors
from dense import off

from lorif_hf import InfluenceConfig
from lorif_hf.algebra.matrices import dense
from lorif_hf.algebra.sides import OneHot
from lorif_hf.algebra.tables import TableMoments, table_roots
from lorif_hf.algebra.whitening import SecondMoments, whiteners
from lorif_hf.building.fitting import shape_of
from lorif_hf.codecs import PackedCodec
from lorif_hf.curvature import Cost, KroneckerCurvature, curvature_of
from lorif_hf.curvature.kronecker import MomentsPass
from lorif_hf.errors import ConfigError, IndexCorruptedError, RecordingError
from lorif_hf.storage.layout import CURVATURE, ModuleEntry


ENTRY, OTHER = ModuleEntry("a.b", "linear", 8, 12, 2, 3, ""), ModuleEntry("c", "linear", 4, 4, 4, 4, "")
FIRST = MomentsPass(samples=10, damping=0.1)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_what_is_kept_of_a_layer_are_the_whiteners_of_its_moments():
    statistic = FIRST.statistic(ENTRY)
    assert isinstance(statistic, SecondMoments) and statistic.tokens == 0
    statistic.add(statistic.of(random(20, 2), random(20, 3, seed=1)))
    tensors = FIRST.tensors(ENTRY, statistic, 2.5)
    assert list(tensors) == ["in_whitener", "out_whitener"]
    for tensor, expected in zip(tensors.values(), whiteners(statistic, damping=0.1, scale=2.5), strict=True):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_moments_that_are_not_finite_are_refused_with_the_module(value):
    statistic = FIRST.statistic(ENTRY)
    statistic.outputs[1, 1] = value
    with pytest.raises(RecordingError) as caught:
        FIRST.tensors(ENTRY, statistic, 1.0)
    assert str(caught.value) == (
        "Module 'a.b' cannot be whitened (a second moment is not finite): its inputs or gradients are too large. "
        "Leave it out with exclude_modules, or set whitening='none'."
    )


def test_gradients_are_whitened_from_both_sides():
    sides = {"in_whitener": random(4, 4), "out_whitener": random(3, 3, seed=1)}
    gradients = random(5, 4, 3, seed=2)
    expected = torch.zeros(5, 4, 3, dtype=torch.float64)
    for row in range(5):
        expected[row] = sides["in_whitener"].double().T @ gradients[row].double() @ sides["out_whitener"].double()
    assert off(FIRST.whiten(gradients, sides), expected) < 1e-6


def test_a_reduction_finds_the_whitened_gradients_of_tokens():
    """Of full width, all of it: nothing is left out."""
    sides = {"in_whitener": random(8, 8), "out_whitener": random(6, 6, seed=1)}
    inputs, outputs = random(3, 5, 8, seed=2), random(3, 5, 6, seed=3)
    reduced = FIRST.reduction(sides, 6)(inputs, outputs)
    expected = FIRST.whiten(inputs.mT @ outputs, sides)
    assert off(dense(reduced), expected.double()) < 1e-3
    assert off(dense(FIRST.reduction(sides, None)(inputs, outputs)), expected.double()) < 1e-5


TABLE = ModuleEntry("t", "embedding", 50, 6, 3, 4, "", in_width=6)


def test_of_a_table_a_scale_of_its_rows_is_kept_and_no_matrix_of_them():
    statistic = FIRST.statistic(TABLE)
    assert isinstance(statistic, TableMoments) and statistic.inputs.shape == (2, 50)
    statistic.add(statistic.of(OneHot(torch.tensor([[3, 3, 7]]), 50, torch.float32), random(1, 3, 4)))
    tensors = FIRST.tensors(TABLE, statistic, 2.5)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "in_scale": (50,),
        "out_whitener": (4, 4),
    }
    for tensor, expected in zip(tensors.values(), table_roots(statistic, damping=0.1, scale=2.5), strict=True):
        assert torch.equal(tensor, expected)
    assert FIRST.in_scale(tensors) is tensors["in_scale"]
    assert FIRST.cost(TABLE) == Cost(
        stored=4 * (50 + 16),
        memory=4 * 2 * (50 + 16),
        flops=2 * 3 * 4 * 4,
        token_flops=2 * 16,
        once_flops=8 * 4**3,
        moment_memory=5 * 8 * 16,
    )


def test_the_gradients_of_a_table_come_scaled_and_are_whitened_from_the_other_side():
    tensors = {"in_scale": random(50).abs(), "out_whitener": random(8, 8, seed=1)}
    inputs, outputs = random(3, 5, 6, seed=2), random(3, 5, 8, seed=3)
    expected = (inputs.mT @ outputs).double() @ tensors["out_whitener"].double()
    assert off(FIRST.whiten(inputs.mT @ outputs, tensors), expected) < 1e-5
    assert off(dense(FIRST.reduction(tensors, 6)(inputs, outputs)), expected) < 1e-3
    assert off(dense(FIRST.reduction(tensors, None)(inputs, outputs)), expected) < 1e-5
    assert FIRST.in_scale({"in_whitener": random(2, 2), "out_whitener": random(3, 3)}) is None


SCALES = {
    "of another table": (torch.ones(49), r"'t.in_scale' is .* \(49,\), the manifest makes it .* \(50,\)"),
    "a matrix": (torch.ones(50, 50), r"\(50, 50\), the manifest makes it torch.float32 \(50,\)"),
    "negative": (torch.full((50,), -1.0), r"tensor 't.in_scale' holds NaN, infinity or numbers below 0\."),
    "NaN": (torch.full((50,), torch.nan), r"tensor 't.in_scale' holds NaN, infinity"),
    "absent": (None, "it has no tensor 't.in_scale'"),
}


@pytest.mark.parametrize("value, message", SCALES.values(), ids=SCALES)
def test_a_scale_that_cannot_be_is_refused(tmp_path, value, message):
    tensors = {"t.in_scale": value, "t.out_whitener": torch.eye(4), "t.in_whitener": torch.eye(3)}
    with pytest.raises(IndexCorruptedError, match=message):
        load(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, TABLE)


def test_a_scale_comes_back_bit_by_bit(tmp_path):
    tensors = {"t.in_scale": random(50).abs(), "t.out_whitener": random(4, 4)}
    loaded = load(tmp_path, tensors, TABLE)
    assert {f"t.{name}" for name in loaded} == set(tensors)
    assert all(torch.equal(tensor, tensors[f"t.{name}"]) for name, tensor in loaded.items())


def test_a_first_pass_costs_its_moments_its_whiteners_and_two_products_an_example():
    cost = FIRST.cost(ModuleEntry("w", "linear", 30, 50, 30, 50, ""))
    squares = 30**2 + 50**2
    assert cost == Cost(
        stored=4 * squares,
        memory=4 * squares,
        flops=2 * 30 * 50 * (30 + 50),
        token_flops=2 * squares,
        once_flops=8 * (30**3 + 50**3),
        moment_memory=5 * 8 * 50**2,
    )
    sharing = FIRST.cost(ModuleEntry("w", "linear", 30, 50, 30, 50, "", input_of="v"))
    assert (sharing.stored, sharing.memory, sharing.flops) == (4 * 50**2, 4 * 50**2, cost.flops)


def test_the_first_pass_is_the_configs():
    config = InfluenceConfig(whitening_samples=17, whitening_damping=0.25)
    assert MomentsPass.from_config(config) == MomentsPass(17, 0.25)
    assert MomentsPass.from_config(InfluenceConfig.paper()) is None
    assert curvature_of(config) == KroneckerCurvature(MomentsPass(17, 0.25))


def test_a_curvature_that_nothing_estimates_is_refused():
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig.paper(curvature="kronecker")
    assert str(caught.value) == "curvature='kronecker' is what whitening='kronecker' estimates: set both."


def test_nothing_is_left_to_be_fitted_or_to_be_done_to_a_query(tmp_path):
    curvature = KroneckerCurvature(FIRST)
    shape = shape_of(ENTRY, 100, PackedCodec(1, 1))
    assert curvature.keeps_rank and curvature.cost(shape, None) == curvature.cost(shape, 1) == Cost()
    assert curvature.fit(shape, {}, None) is None
    gradients = random(5, 2, 3)
    tensors = curvature.load(module_tensors(tmp_path, whitener_tensors(), ENTRY), ENTRY)
    assert tensors == {} and curvature.precondition(gradients, tensors) is gradients


def whitener_tensors():
    return {
        f"{module.name}.{side}_whitener": random(size, size, seed=size)
        for module in (ENTRY, OTHER)
        for side, size in (("in", module.d1), ("out", module.d2))
    }


def load(folder, tensors, module=ENTRY):
    return FIRST.load(module_tensors(folder, tensors, module), module)


def test_whiteners_come_back_bit_by_bit(tmp_path):
    tensors = whitener_tensors()
    for module in (ENTRY, OTHER):
        loaded = load(tmp_path, tensors, module)
        assert list(loaded) == ["in_whitener", "out_whitener"]
        assert all(torch.equal(tensor, tensors[f"{module.name}.{side}"]) for side, tensor in loaded.items())


WHITENERS = {
    "of another size": (torch.eye(3), r"'a.b.in_whitener' is .* \(3, 3\), the manifest makes it .* \(2, 2\)"),
    "not square": (torch.ones(2, 3), r"\(2, 3\), the manifest makes it torch.float32 \(2, 2\)"),
    "float64": (torch.eye(2, dtype=torch.float64), "is torch.float64"),
    "NaN": (torch.full((2, 2), torch.nan), r"tensor 'a.b.in_whitener' holds NaN, infinity\."),
    "infinite": (torch.tensor([[torch.inf, 0], [0, 1]]), r"tensor 'a.b.in_whitener' holds NaN, infinity\."),
    "opposite infinities": (torch.tensor([[torch.inf, 0], [0, -torch.inf]]), r"holds NaN, infinity\."),
    "absent": (None, "it has no tensor 'a.b.in_whitener'"),
}


@pytest.mark.parametrize("value, message", WHITENERS.values(), ids=WHITENERS)
def test_a_whitener_that_cannot_be_is_refused(tmp_path, value, message):
    tensors = {**whitener_tensors(), "a.b.in_whitener": value}
    with pytest.raises(IndexCorruptedError, match=message) as caught:
        load(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    assert caught.value.file == CURVATURE

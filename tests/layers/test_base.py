"""What tells the examples of a batch apart, and which kind a module is of."""

import pytest
import torch
from torch import nn

from lorif_hf.layers import BatchShape, LayerKind, MatrixShape, kind_of
from lorif_hf.layers.base import first_argument, go_together, kinds_of


@pytest.mark.parametrize(
    "shape, expected",
    [((3, 4, 5), (3, 4, 5)), ((3, 2, 4, 5), (3, 8, 5)), ((3, 5), (3, 1, 5)), ((12, 5), (3, 4, 5)), ((7, 5), None)],
    ids=str,
)
def test_examples_are_told_apart_by_the_first_axis_or_by_flattened_tokens(shape, expected):
    tensor = torch.randn(shape)
    apart = BatchShape(3, 4).per_example(tensor)
    if expected is None:
        assert apart is None
    else:
        assert apart.shape == expected and torch.equal(apart.flatten(), tensor.flatten())


def test_without_tokens_nothing_is_taken_for_flattened():
    assert BatchShape(3, None).per_example(torch.randn(12, 5)) is None
    assert BatchShape(3, 1).per_example(torch.randn(3, 5)).shape == (3, 1, 5)


def test_the_input_of_a_layer_comes_by_position_or_by_name():
    tensor = torch.ones(2)
    assert first_argument((tensor,), {"x": None}) is tensor and first_argument((), {"x": tensor}) is tensor


def test_kinds():
    assert kind_of(nn.Linear(2, 3)).name == "linear" and kind_of(nn.GRU(2, 2), "weight_ih_l0") is None
    assert {name: kind.name for name, kind in kinds_of(nn.Linear(2, 3)).items()} == {
        "weight": "linear",
        "bias": "bias",
    }
    assert {kind.name for kind in kinds_of(nn.LayerNorm(2)).values()} == {"elementwise"}
    with pytest.raises(TypeError, match="abstract"):
        LayerKind()


def test_which_uses_of_a_weight_are_recorded_together():
    linear, table, norm, none = (
        kind_of(module, parameter)
        for module, parameter in (
            (nn.Linear(2, 3), "weight"),
            (nn.Embedding(3, 2), "weight"),
            (nn.LayerNorm(2), "weight"),
            (nn.Sequential(), "weight"),
        )
    )
    assert go_together(linear, table) and go_together(table, linear) and go_together(norm, norm)
    assert not go_together(linear, norm) and not go_together(norm, table)
    assert none is None and not go_together(linear, none) and not go_together(none, none)


def test_a_parameter_that_is_computed_or_absent_is_of_no_kind():
    computed = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    assert kind_of(computed) is None and "weight" not in kinds_of(computed)
    assert kind_of(nn.Linear(2, 3, bias=False), "bias") is None


def test_a_side_is_as_wide_as_its_features_where_nothing_else_is_said():
    assert MatrixShape(5, 3).widths == MatrixShape(5, 3).features == (5, 3)
    assert MatrixShape(50, 8, in_width=8).widths == (8, 8)


def test_the_sequences_of_an_example_are_one_after_the_other():
    batch, tensor = BatchShape(2, 4, sequences=3), torch.randn(6, 4, 5)
    assert torch.equal(batch.per_example(tensor), torch.stack([tensor[:3].flatten(0, 1), tensor[3:].flatten(0, 1)]))
    assert torch.equal(batch.per_example(tensor.flatten(0, 1)), batch.per_example(tensor))
    assert batch.per_example(tensor[:, 0]).shape == (2, 3, 5) and batch.per_example(torch.randn(5, 4, 5)) is None
    assert batch.per_example(torch.randn(2, 7, 5)).shape == (2, 7, 5)  # of each example once

import numpy as np
import pytest
import torch

from lorif_hf.errors import EvaluationError
from lorif_hf.evaluation.arrays import as_array, booleans, finite_array


MATRIX = ("query", "training row")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_tensors_of_any_precision_become_arrays(dtype):
    tensor = torch.tensor([[1, 2], [3, 4]], dtype=dtype)
    assert as_array(tensor, "x").tolist() == [[1, 2], [3, 4]]


def test_a_tensor_with_a_graph_is_taken_and_nothing_is_copied():
    tensor = torch.ones(3, requires_grad=True)
    assert as_array(tensor, "x").tolist() == [1, 1, 1]
    array = np.ones((2, 3), dtype=np.float32)
    assert np.shares_memory(finite_array(array, "x", MATRIX), array) and as_array(tensor, "x").dtype == np.float32


@pytest.mark.parametrize("value", [[[1.0, 2.0], [3.0]], [None, 1.0], [object()]], ids=["ragged", "None", "object"])
def test_what_is_no_array_is_refused(value):
    with pytest.raises(EvaluationError, match="^scores must be an array; found rows of different lengths, or no numb"):
        as_array(value, "scores")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_is_named_with_its_place(bad):
    matrix = np.zeros((3, 4))
    matrix[1, 2] = bad
    with pytest.raises(EvaluationError, match=f"^scores must be finite, found {bad} at query 1, training row 2. L"):
        finite_array(matrix, "scores", MATRIX)
    with pytest.raises(EvaluationError, match=f"found {bad} at row 2"):
        finite_array(matrix[1], "influence", ("row",))


def test_axes_and_contents_are_checked():
    with pytest.raises(EvaluationError, match=r"must have 2 axes \(one query, one training row\), found shape \(3,\)"):
        finite_array([1, 2, 3], "x", MATRIX)
    with pytest.raises(EvaluationError, match=r"x is empty, shape \(0, 4\): there is nothing to evaluate"):
        finite_array(np.zeros((0, 4)), "x", MATRIX)
    for value, dtype in [([[True]], "bool"), ([["a"]], "<U1"), ([[1j]], "complex128")]:
        with pytest.raises(EvaluationError, match=f"x must hold numbers, found {dtype}"):
            finite_array(value, "x", MATRIX)


@pytest.mark.parametrize("value, dtype", [([0, 1], "int64"), ([0.0, 1.0], "float64"), (torch.tensor([1, 0]), "int64")])
def test_a_mask_is_boolean_and_nothing_else(value, dtype):
    with pytest.raises(EvaluationError, match=rf"^m must be boolean, found {dtype}.*pass np.asarray\(m\) == 1; if it"):
        booleans(value, "m", ("row",))
    assert booleans(torch.tensor([True, False]), "m", ("row",)).tolist() == [True, False]

import inspect

import pytest

from lorif_hf import errors


CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", CLASSES)
def test_everything_raised_on_purpose_has_one_base_class_and_an_explanation(kind):
    assert issubclass(kind, errors.LorifError) and inspect.getdoc(kind)


@pytest.mark.parametrize(
    "kind, builtin",
    [
        (errors.ConfigError, ValueError),
        (errors.DatasetError, ValueError),
        (errors.QueryError, ValueError),
        (errors.ObjectiveError, ValueError),
        (errors.IndexFormatError, ValueError),
        (errors.UnknownKindError, ValueError),
        (errors.ModelMismatchError, ValueError),
        (errors.UnsupportedModuleError, ValueError),
        (errors.EvaluationError, ValueError),
        (errors.BuildFolderError, FileExistsError),
        (errors.DiskFullError, OSError),
        (errors.NonFiniteGradientError, ArithmeticError),
    ],
)
def test_an_error_is_also_what_python_would_have_raised(kind, builtin):
    assert issubclass(kind, builtin)


def test_a_damaged_file_is_named_with_the_problem_and_the_way_out():
    error = errors.IndexCorruptedError("data/x.parquet", "it has 3 bytes, the manifest says 4")
    assert error.file == "data/x.parquet"
    assert str(error).startswith("data/x.parquet: it has 3 bytes, the manifest says 4. ")
    assert "download it again, or rebuild the index" in str(error)


@pytest.mark.parametrize("count, shown", [(1, "0."), (10, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9."), (11, "7, 8, 9, ....")])
def test_a_bad_gradient_names_module_and_rows_but_not_a_thousand_of_them(count, shown):
    error = errors.NonFiniteGradientError("model.layers.0", range(count))
    assert error.module == "model.layers.0" and error.rows == list(range(count))
    assert "'model.layers.0' is NaN or infinite for row(s) 0" in str(error) and f"{shown} Check" in str(error)
    assert "load it in bfloat16 or float32" in str(error)


@pytest.mark.parametrize(
    "error, expected",
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
        (None, False),
    ],
)
def test_a_lack_of_memory_is_known_by_its_words(error, expected):
    assert errors.out_of_memory(error) is expected

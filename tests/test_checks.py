"""Arguments that are checked before anything is done with them."""

from typing import Literal

import numpy as np
import pytest

from lorif_hf.checks import one_of, whole_bytes, whole_number
from lorif_hf.errors import ConfigError, QueryError


@pytest.mark.parametrize("value", [3, 10**30, np.int64(3), np.uint8(7)], ids=repr)
def test_whole_numbers_come_back_as_pythons_own(value):
    checked = whole_number(value, "top_k", 3, QueryError)
    assert checked == value and type(checked) is int


@pytest.mark.parametrize("least", [0, -5])
def test_the_least_is_allowed(least):
    assert whole_number(least, "seed", least, ConfigError) == least


@pytest.mark.parametrize(
    "value", [2, -3, 3.0, np.float64(3), "3", None, True, np.True_, float("nan"), [3], np.array([3])], ids=repr
)
@pytest.mark.parametrize("error", [QueryError, ConfigError])
def test_what_is_no_whole_number_is_refused_by_name(value, error):
    with pytest.raises(error) as caught:
        whole_number(value, "top_k", 3, error)
    assert str(caught.value) == f"top_k must be an integer of at least 3, got {value!r}."


@pytest.mark.parametrize("value", [True, np.True_])
def test_a_truth_value_is_no_number_even_where_one_would_do(value):
    with pytest.raises(QueryError, match="must be an integer of at least 1"):
        whole_number(value, "top_k", 1, QueryError)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, None),
        (5, 5),
        ("5", 5),
        ("5B", 5),
        ("2GB", 2_000_000_000),
        ("512MiB", 512 << 20),
        ("1.5 MiB", 1_572_864),
        ("3k", 3000),
        ("1tb", 10**12),
        (" 7 kib ", 7168),
    ],
)
def test_sizes_in_bytes(size, expected):
    assert whole_bytes(size, "max_memory", ConfigError) == expected


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "", "0", "0.0001k", "two", "-1GB", "5XB", "1e9", "9" * 99])
@pytest.mark.parametrize("error", [ConfigError, QueryError])
def test_impossible_sizes_are_refused_by_name(size, error):
    with pytest.raises(error) as caught:
        whole_bytes(size, "max_memory", error)
    assert str(caught.value) == f'max_memory must be a number of bytes or a size like "2GB", got {size!r}.'


@pytest.mark.parametrize("value", ["a", "b", 2])
def test_a_value_of_the_literal_comes_back(value):
    assert one_of(value, "choice", Literal["a", "b", 2], ConfigError) == value


@pytest.mark.parametrize("value", ["A", "", None, 2.0, True, 1, ["a"], float("nan"), b"a"], ids=repr)
def test_another_value_is_refused_with_all_that_are_known(value):
    with pytest.raises(QueryError) as caught:
        one_of(value, "choice", Literal["a", "b", 2], QueryError)
    assert str(caught.value) == f"choice must be one of a, b, 2, got {value!r}."

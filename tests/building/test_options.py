"""Which rows go through the model together, and what no build can run with."""

import pytest
import torch

from lorif_hf.building.options import BuildOptions
from lorif_hf.errors import ConfigError


def groups(batching, lengths):
    return list(batching.groups(range(len(lengths)), lambda numbers: [lengths[i] for i in numbers]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 7, 20, 64, 10_000])
def test_a_token_budget_is_kept_and_every_row_goes_once(seed, budget):
    lengths = torch.randint(0, 30, (50,), generator=torch.Generator().manual_seed(seed)).tolist()
    found = groups(BuildOptions(8, max_tokens=budget), lengths)
    assert sorted(row for group in found for row in group) == list(range(50))
    for group in found:
        assert group == sorted(group)
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= budget
    longest = [max(lengths[row] for row in group) for group in found]
    assert longest == sorted(longest, reverse=True)


def test_a_token_budget_wastes_no_room():
    """Of equal rows as many go together as fit."""
    assert [len(group) for group in groups(BuildOptions(8, max_tokens=20), [5] * 10)] == [4, 4, 2]


def test_without_a_budget_rows_go_in_order_and_no_length_is_asked_for():
    assert list(BuildOptions(3).groups(range(2, 9), None)) == [[2, 3, 4], [5, 6, 7], [8]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, got True"),
        ({"batch_size": 1, "max_tokens": 0}, "max_tokens_per_batch must be an integer of at least 1, got 0"),
        ({"batch_size": 1, "max_memory": "much"}, "max_memory must be a number of bytes or a size like"),
    ],
)
def test_options_that_are_none_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        BuildOptions(**options)


def test_memory_is_in_bytes():
    assert BuildOptions(1, max_memory="2GB").memory == 2_000_000_000 and BuildOptions(1).memory is None

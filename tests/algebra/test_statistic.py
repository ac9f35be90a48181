"""What every statistic promises: a batch's share leaves the sum alone, and shares add up to the whole."""

import pytest
import torch

from lorif_hf.algebra.statistic import Statistic
from lorif_hf.algebra.tables import TableMoments
from lorif_hf.algebra.whitening import SecondMoments


ZEROS = {SecondMoments: lambda: SecondMoments.zeros(4, 3), TableMoments: lambda: TableMoments.zeros(4, 3)}


def tokens(examples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, 6, 4, generator=generator), torch.randn(examples, 6, 3, generator=generator)


def numbers(statistic):
    return torch.cat([torch.as_tensor(value, dtype=torch.float64).flatten() for value in vars(statistic).values()])


def test_every_statistic_of_the_library_is_tried_here():
    ours = {kind for kind in Statistic.__subclasses__() if kind.__module__.startswith("lorif_hf.")}
    assert ours == set(ZEROS)


@pytest.mark.parametrize("zero", ZEROS.values(), ids=lambda zero: type(zero()).__name__)
def test_batches_add_up_to_the_whole_and_a_share_leaves_the_sum_alone(zero):
    inputs, gradients = tokens(10)
    whole, parts = zero(), zero()
    assert bool((numbers(whole) == 0).all())
    share = whole.of(inputs, gradients)
    assert type(share) is type(whole) and bool((numbers(whole) == 0).all())
    whole.add(share)
    for start, stop in ((0, 1), (1, 7), (7, 10)):
        parts.add(parts.of(inputs[start:stop], gradients[start:stop]))
    assert float(numbers(whole).abs().max()) > 0
    torch.testing.assert_close(numbers(parts), numbers(whole), rtol=1e-5, atol=1e-5)


def test_a_statistic_says_both_what_a_batch_is_and_how_it_adds_up():
    with pytest.raises(TypeError, match="abstract"):
        Statistic()

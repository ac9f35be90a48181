"""Cross-entropy with its gradient made on the way, against torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F

from lorif_hf.tasks.cross_entropy import cross_entropy


def both(logits, labels, weights):
    """Losses and the gradient of their weighted sum: ours in float32, torch's in float64."""
    found = []
    for ours in (True, False):
        given = logits.to(torch.float32 if ours else torch.float64, copy=True).requires_grad_()
        losses = cross_entropy(given, labels) if ours else F.cross_entropy(given, labels, reduction="none")
        (losses * weights.to(losses)).sum().backward()
        found += [losses.detach().double(), given.grad.double()]
    return found


@pytest.mark.parametrize("ignored", [(), (0, 3), range(7)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_losses_and_gradients_are_those_of_torch(ignored, weighted, size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 11, generator=generator) * size
    labels = torch.randint(0, 11, (7,), generator=generator)
    labels[list(ignored)] = -100
    weights = torch.randn(7, generator=generator) if weighted else torch.ones(7)
    losses, gradient, expected, expected_gradient = both(logits, labels, weights)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_one_class_and_no_position():
    losses, gradient, expected, expected_gradient = both(
        torch.randn(3, 1), torch.zeros(3, dtype=torch.int64), torch.ones(3)
    )
    assert losses.tolist() == expected.tolist() == [0, 0, 0] and gradient.tolist() == expected_gradient.tolist()
    assert cross_entropy(torch.randn(0, 5), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_a_class_that_is_ruled_out_takes_no_gradient():
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    losses, gradient, expected, expected_gradient = both(logits, torch.tensor([2]), torch.ones(1))
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-7)


def test_a_graph_that_is_kept_gives_the_gradient_again():
    logits = torch.randn(2, 3, requires_grad=True)
    losses = cross_entropy(logits, torch.tensor([1, 2]))
    first = torch.autograd.grad(2 * losses.sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(losses.sum(), logits)[0] * 2, first)


@pytest.mark.parametrize("distance", [80.0, 95.0, 104.0, 1e4])
def test_a_label_whose_probability_is_no_number_of_float32(distance):
    """Beside one whose is: exp(-88) is about the smallest normal number, exp(-104) is rounded to zero."""
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    logits[1, 2], logits[3, 0] = distance, distance
    losses, gradient, expected, expected_gradient = both(logits, torch.tensor([0, 4, -100, 1]), torch.ones(4))
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("label", [5, -1])
def test_a_label_that_is_no_class(label):
    with pytest.raises(IndexError, match=f"label {label} is out of bounds: there are 5 classes"):
        cross_entropy(torch.randn(2, 5), torch.tensor([0, label]))

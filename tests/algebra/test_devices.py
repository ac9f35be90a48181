"""What crosses between a device and the CPU does so at once, and nothing else about it shows."""

import pytest
import torch
from fake_device import DEVICE, SECOND_DEVICE, FakeDevice, on_device

from lorif_hf.algebra.devices import all_finite, fixed_normal, on_cpu, widest


def tensors():
    """Of every width, of odd sizes, strided, empty, and of no axis."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 255, (3, 5), generator=generator, dtype=torch.uint8),
        torch.randn(3, 7, generator=generator, dtype=torch.float64),
        torch.randn(3, 2, generator=generator).bfloat16(),
        torch.randn(4, 6, generator=generator)[:, ::2].mT,
        torch.randn(10, generator=generator)[::3],
        torch.zeros(0, 4),
        torch.tensor(2.5),
        torch.tensor([True, False, True]),
    ]


def test_tensors_of_all_dtypes_cross_at_once():
    expected = tensors()
    with FakeDevice() as fake:
        found = on_cpu(on_device(expected))
        assert fake.crossings.counts == {"to host": 1}
        assert fake.crossings.bytes == sum(tensor.nbytes for tensor in expected)
    for tensor, other in zip(found, expected, strict=True):
        assert type(tensor) is torch.Tensor and tensor.dtype == other.dtype and torch.equal(tensor, other)


def test_each_device_crosses_once_and_the_cpu_not_at_all():
    first, second, third, *_ = tensors()
    with FakeDevice() as fake:
        mixed = [on_device(first), second, on_device(third, SECOND_DEVICE), on_device(second)]
        found = on_cpu(mixed)
        assert fake.crossings.counts == {"to host": 2}
    assert found[1] is second
    assert all(torch.equal(a, b) for a, b in zip(found, [first, second, third, second], strict=True))


def test_of_nothing_there_is_nothing():
    assert on_cpu([]) == [] and all_finite([])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_any_number_that_is_not_finite_is_seen(value, place):
    parts = [torch.zeros(3), torch.zeros(2, 2, dtype=torch.float64), torch.zeros(4).bfloat16()]
    assert all_finite(parts)
    parts[place].view(-1)[-1] = value
    assert not all_finite(parts)


def test_each_device_is_waited_for_once():
    with FakeDevice() as fake:
        parts = [on_device(torch.ones(4)) for _ in range(5)] + [on_device(torch.ones(4), SECOND_DEVICE)]
        assert all_finite([*parts, torch.ones(2)])
        assert fake.crossings.counts == {"wait": 2}


def test_fixed_numbers_are_drawn_once_and_brought_over_once():
    expected = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    with torch.inference_mode():
        kept = fixed_normal(9, 4, torch.zeros(1), drawn=torch.float64)
    assert torch.equal(kept, expected) and not kept.is_inference()
    assert kept is fixed_normal(9, 4, torch.zeros(1), drawn=torch.float64)
    assert not torch.equal(kept, fixed_normal(9, 4, torch.zeros(1)))
    with FakeDevice() as fake:
        like = on_device(torch.zeros(1))
        assert torch.equal(fixed_normal(9, 5, like).cpu(), fixed_normal(9, 5, torch.zeros(1)))
        assert fixed_normal(9, 5, like).device == DEVICE and len(fake.crossings.of("to device")) == 1


def test_the_widest_dtype_is_that_of_the_device():
    assert widest(torch.device("cpu")) == widest(torch.device("cuda")) == torch.float64
    assert widest(torch.device("mps")) == torch.float32

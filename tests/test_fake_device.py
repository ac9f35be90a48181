"""The fake device does what a real one does, and counts what crosses: see `fake_device`."""

import pytest
import torch
from fake_device import DEVICE, SECOND_DEVICE, FakeDevice, on_device, on_host
from tiny import make_gpt2
from torch import nn


@pytest.fixture
def fake():
    with FakeDevice() as device:
        yield device


def test_it_computes_what_the_cpu_does(fake):
    there = on_device(torch.randn(4, 6))
    made = torch.ones(6, 3, device=DEVICE) + torch.eye(6, 3, device=f"{DEVICE.type}")
    assert there.device == made.device == (there @ made).device == DEVICE
    assert not (there @ made).is_cpu and isinstance(there @ made, torch.Tensor)
    torch.testing.assert_close(on_host(there @ made), on_host(there) @ on_host(made))
    assert fake.crossings == []


def test_views_and_changes_in_place_are_those_of_one_memory(fake):
    there = on_device(torch.zeros(3, 4))
    row, version = there[1], there._version
    row.add_(2)
    there[:, 0] = 5
    assert there._version > version and row._base is there
    assert on_host(there).tolist() == [[5, 0, 0, 0], [5, 2, 2, 2], [5, 0, 0, 0]]
    torch.mul(there, 2, out=there)
    assert on_host(row).tolist() == [10, 4, 4, 4] and row.data_ptr() == there[1].data_ptr()
    with pytest.raises(NotImplementedError, match="t_ changes the shape of a tensor in place"):
        there.t_()


def test_gradients_are_those_of_the_cpu(fake):
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(4, 5)
    layer(x).square().sum().backward()
    expected = layer.weight.grad.clone()
    layer.zero_grad()
    on_device(layer)
    assert isinstance(layer.weight, nn.Parameter) and layer.weight.device == DEVICE
    layer(on_device(x)).square().sum().backward()
    assert layer.weight.grad.device == DEVICE
    torch.testing.assert_close(on_host(layer.weight.grad), expected)


def test_tied_weights_stay_tied(fake):
    model = on_device(make_gpt2())
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize(
    "mixing",
    [
        lambda there: there + torch.ones(3),
        lambda there: torch.where(torch.ones(3, dtype=torch.bool), there, 0),
        lambda there: torch.cat([there, torch.ones(3)]),
        lambda there: torch.ones(3).add_(there),
        lambda there: torch.ones(3)[torch.zeros(3, dtype=torch.int64, device=DEVICE)],
        lambda there: there @ on_device(torch.ones(3), SECOND_DEVICE),
    ],
    ids=["add", "where", "cat", "in place", "index of the CPU", "two devices"],
)
def test_tensors_of_different_devices_do_not_mix(fake, mixing):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mixing(on_device(torch.zeros(3)))


def test_a_number_of_the_cpu_mixes(fake):
    assert on_host(on_device(torch.zeros(3)) + torch.tensor(2.0)).tolist() == [2, 2, 2]
    assert fake.crossings == []


def test_a_generator_of_the_cpu_draws_nothing_there(fake):
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.randn(3, generator=torch.Generator(), device=DEVICE)


CROSSINGS = {
    "to": (lambda there: torch.zeros(5).to(DEVICE), "to device", 20),
    "to like": (lambda there: torch.zeros(5).to(there), "to device", 20),
    "made of a list": (lambda there: torch.tensor([1, 2], device=DEVICE), "to device", 16),
    "copied there": (lambda there: there.copy_(torch.ones(3)), "to device", 12),
    "an index of the CPU": (lambda there: there[torch.tensor([0, 1])], "to device", 16),
    "cpu": (lambda there: there.cpu(), "to host", 12),
    "tolist": (lambda there: there.tolist(), "to host", 12),
    "copied here": (lambda there: torch.zeros(3).copy_(there), "to host", 12),
    "to another device": (lambda there: there.to(SECOND_DEVICE), "between devices", 12),
    "float": (lambda there: float(there[0]), "wait", 0),
    "bool": (lambda there: bool((there > 0).any()), "wait", 0),
    "nonzero": (lambda there: there.nonzero(), "wait", 0),
    "a mask as index": (lambda there: there[there > 0], "wait", 0),
    "written by a mask": (lambda there: there.__setitem__(there > 0, on_device(torch.ones(0))), "wait", 0),
    "masked_select": (lambda there: there.masked_select(there > 0), "wait", 0),
    "unique": (lambda there: there.unique(), "wait", 0),
    "checked cholesky": (lambda there: torch.linalg.cholesky(torch.eye(3, device=DEVICE)), "wait", 0),
    "checked solve": (lambda there: torch.linalg.solve(torch.eye(3, device=DEVICE), there), "wait", 0),
}


@pytest.mark.parametrize("case", CROSSINGS)
@pytest.mark.parametrize("inference", [False, True])
def test_what_crosses_is_counted(fake, case, inference):
    crossing, kind, size = CROSSINGS[case]
    with torch.inference_mode(inference):
        crossing(on_device(torch.zeros(3)))
    assert fake.crossings.counts == {kind: 1} and fake.crossings.bytes == size, str(fake.crossings)


@pytest.mark.parametrize("inference", [False, True])
def test_what_does_not_cross_is_not(fake, inference):
    with torch.inference_mode(inference):
        _compute_there()
    assert fake.crossings == []


def _compute_there():
    there = on_device(torch.zeros(3, 3))
    index = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    there[index], there[1:], there.masked_fill(there > 0, 1), torch.where(there > 0, there, 1)
    torch.linalg.cholesky_ex(torch.eye(3, device=DEVICE)), torch.linalg.solve_ex(torch.eye(3, device=DEVICE), there)
    there.to(DEVICE), there.double(), there.isfinite().all(), torch.zeros(2).nonzero()


def test_it_says_where_something_crossed(fake):
    from lorif_hf.algebra.projection import SparseProjection

    SparseProjection.draw(6, 4, seed=0, name="x").project(on_device(torch.ones(2, 6)))
    assert [crossing.kind for crossing in fake.crossings] == ["to device", "to device"]
    assert {crossing.where.partition(":")[0] for crossing in fake.crossings} == {"algebra/projection.py"}
    assert "algebra/projection.py" in str(fake.crossings) and "project" in str(fake.crossings)
    fake.forget()
    on_device(torch.ones(2)).cpu()
    assert fake.crossings[0].where.startswith("test_fake_device.py:")


def test_a_device_without_float64():
    with FakeDevice(float64=False) as fake:
        there = on_device(torch.ones(2))
        for asks in (there.double, lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE)):
            with pytest.raises(TypeError, match="float64"):
                asks()
        with pytest.raises(TypeError, match="float64"):
            there.to("cpu", torch.float64)
        assert there.cpu().double().tolist() == [1, 1] and len(fake.crossings.of("to host")) == 2

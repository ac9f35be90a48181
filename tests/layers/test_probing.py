"""A module called on trial is left as it is."""

import threading

import pytest
import torch
from torch import nn

from lorif_hf.layers.probing import is_probing, output_with, tensors_in


def test_the_output_with_other_parameters():
    module, x = nn.LayerNorm(4), torch.randn(2, 4)
    before = module.weight
    out = output_with(module, {"weight": torch.zeros(4)}, (x,), {})
    assert torch.equal(out, torch.zeros(2, 4)) and not out.requires_grad
    assert module.weight is before and torch.equal(module.weight, torch.ones(4)) and not is_probing()


def test_a_forward_that_was_put_into_the_module_is_passed_by():
    module = nn.LayerNorm(4)
    module.forward = lambda x: 1 / 0  # as accelerate's, which brings weights from elsewhere
    assert output_with(module, {}, (torch.randn(2, 4),), {}).shape == (2, 4)


def test_after_an_error_nothing_is_left():
    class Fails(nn.LayerNorm):
        def forward(self, x):
            self.seen = is_probing()
            torch.rand(1)
            raise RuntimeError("no")

    module, state = Fails(4), torch.get_rng_state()
    before = dict(module.__dict__)
    with pytest.raises(RuntimeError, match="no"):
        output_with(module, {"weight": torch.zeros(4)}, (torch.ones(4),), {})
    assert module.__dict__ == before and not is_probing() and torch.equal(torch.get_rng_state(), state)


def test_random_numbers_are_drawn_again():
    module, x = nn.Dropout(0.5), torch.ones(100)
    torch.manual_seed(0)
    trial = output_with(module, {}, (x,), {})
    assert torch.equal(trial, module(x))


def test_other_threads_are_not_on_trial():
    seen = []

    class Looks(nn.Module):
        def forward(self):
            thread = threading.Thread(target=lambda: seen.append(is_probing()))
            thread.start()
            thread.join()
            return is_probing()

    assert output_with(Looks(), {}, (), {}) is True and seen == [False]


def test_hooks_of_its_parts_are_silent_by_the_flag():
    calls = []

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            return self.inner(x)

    module = Outer()
    module.inner.register_forward_hook(lambda *_: calls.append(is_probing()))
    output_with(module, {}, (torch.ones(1),), {})
    assert calls == [True]


def test_tensors_among_arguments():
    tensor = torch.ones(1)
    assert tensors_in([None, tensor, "x"]) == [tensor]

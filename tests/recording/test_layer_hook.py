"""A hook on a layer of its own: tokens of every call. What happens to inputs in place, the recorder's tests show."""

import pytest
import torch
from torch import nn

from lorif_hf.algebra.projection import TwoSidedProjection
from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers import BatchShape, Elementwise, Linear
from lorif_hf.layers.base import kinds_of
from lorif_hf.layers.modules import TrackedModule
from lorif_hf.layers.probing import output_with
from lorif_hf.recording.layer_hook import LayerHook


@pytest.fixture
def hooked():
    """A layer, its hook, and the hooks that were complete."""
    layer, complete = nn.Linear(4, 3), []
    tracked = TrackedModule.of("layer", Linear(), layer)
    hook = LayerHook(tracked, TwoSidedProjection.draw((4, 3), (2, 3), seed=0, name="layer"), complete.append)
    layer.register_forward_hook(hook, with_kwargs=True)
    return layer, hook, complete


def test_tokens_of_every_call_are_kept_projected_until_they_are_all_there(hooked):
    layer, hook, complete = hooked
    hook.begin(BatchShape(2, 5))
    first, second = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    (layer(first) + layer(second)).sum().backward()
    assert complete == [hook] and hook.calls == 2 and len(hook.tokens) == 2
    signs = hook._signs[0].float() / 2**0.5
    projected = sorted(float(inputs.sum()) for inputs, _ in hook.tokens)
    expected = sorted(float((x @ signs).sum()) for x in (first, second))
    assert projected == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert all(torch.equal(returned, torch.ones(2, 5, 3)) for _, returned in hook.tokens)
    hook.begin(BatchShape(2, 5))
    assert hook.tokens == [] and hook.calls == 0


def test_a_call_without_a_graph_is_noted_and_records_nothing(hooked):
    layer, hook, complete = hooked
    hook.begin(BatchShape(2, 5))
    with torch.no_grad():
        layer(torch.randn(2, 5, 4))
    assert hook.ran_without_graph and hook.calls == 0 and not complete


def test_rows_that_are_no_examples_are_named_when_their_gradient_comes(hooked):
    layer, hook, _ = hooked
    hook.begin(BatchShape(3, None))
    output = layer(torch.randn(7, 4))
    with pytest.raises(UnsupportedModuleError, match="'layer' saw 7 rows in a batch of 3 examples"):
        output.sum().backward()


def test_what_was_made_for_the_passes_can_be_let_go(hooked):
    layer, hook, _ = hooked
    hook.begin(BatchShape(2, 5))
    layer(torch.randn(2, 5, 4)).sum().backward()
    hook.release()
    assert hook.tokens == [] and hook._placed == {}


def test_the_gradient_of_an_output_that_is_a_permuted_view():
    """ConvNext's norm of channels gives back a view of another one's output, here as long along every axis."""

    class Turned(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    layer = Turned(4)
    hook = LayerHook(
        TrackedModule.of("layer", Elementwise(), layer), TwoSidedProjection(None, None), lambda hook: None
    )
    layer.register_forward_hook(hook, with_kwargs=True)
    hook.begin(BatchShape(4, None))
    x, returned = torch.randn(4, 4, 4, 4), torch.randn(4, 4, 4, 4)
    (expected,) = torch.autograd.grad(layer(x), layer.weight, returned)
    hook.begin(BatchShape(4, None))
    layer(x).backward(returned)
    ((inputs, gradients),) = hook.tokens
    torch.testing.assert_close((inputs.mT @ gradients).sum(dim=(0, 1)), expected)


def test_every_parameter_of_a_module_has_a_hook_of_its_own():
    """The first gives a copy of the output, where the graph starts; the second must see that one."""
    layer, x = nn.Linear(4, 3).requires_grad_(False), torch.randn(2, 5, 4)
    hooks = {}
    for name, kind in kinds_of(layer).items():
        tracked = TrackedModule.of("layer", kind, layer, parameter=name)
        hooks[name] = LayerHook(tracked, TwoSidedProjection(None, None), lambda hook: None)
        hooks[name].begin(BatchShape(2, 5))
        layer.register_forward_hook(hooks[name], with_kwargs=True)
    layer(x).sin().sum().backward()
    returned = nn.functional.linear(x, layer.weight, layer.bias).cos()
    ((inputs, gradients),) = hooks["weight"].tokens
    ((ones, same),) = hooks["bias"].tokens
    assert torch.equal(inputs, x) and torch.equal(ones, torch.ones(2, 5, 1))
    assert torch.equal(gradients, returned) and torch.equal(same, returned)


def test_calls_on_trial_are_none(hooked):
    layer, hook, _ = hooked

    class Outer(nn.Module):
        def forward(self, x):
            return layer(x)

    hook.begin(BatchShape(2, 5))
    output_with(Outer(), {}, (torch.randn(2, 5, 4),), {})
    assert hook.calls == 0 and not hook.ran_without_graph


def test_what_a_kind_cannot_record_is_named(hooked):
    _, hook, _ = hooked

    class Refuses(Linear):
        def tokens(self, *args):
            raise UnsupportedModuleError("it is Tuesday")

    hook.tracked = TrackedModule.of("layer", Refuses(), nn.Linear(4, 3))
    with pytest.raises(UnsupportedModuleError, match="'layer' cannot be tracked: it is Tuesday.*=.'layer'") as caught:
        hook(nn.Linear(4, 3), (torch.ones(2, 4),), {}, torch.ones(2, 3))
    assert caught.value.module == "layer"

"""A hook on a layer of its own: tokens of every call. What happens to inputs in place, the recorder's tests show."""

import pytest
import torch
from torch import nn

from lorif_hf.algebra.projection import TwoSidedProjection
from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers import BatchShape, Linear
from lorif_hf.layers.modules import TrackedModule
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
    signs = hook._projection.in_signs.float() / 2**0.5
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
    assert hook.tokens == [] and hook._placed is None

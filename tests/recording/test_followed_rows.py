"""Rows that were put into a table: which are a weight's, and which are replaced again."""

import torch
import torch.nn.functional as F
from torch import nn

from lorif_hf.algebra.projection import TwoSidedProjection
from lorif_hf.layers import AdapterMatrix, BatchShape
from lorif_hf.layers.modules import TrackedModule
from lorif_hf.recording.followed_rows import ReplacedRows
from lorif_hf.recording.layer_hook import LayerHook


TABLE = torch.randn(6, 4)


def hooked(*deltas):
    """Hooks of weights, (n, 4) each, and how they are found."""
    entries = nn.ParameterDict({str(place): delta for place, delta in enumerate(deltas)})
    hooks = {}
    for name in entries:
        tracked = TrackedModule.of("entries", AdapterMatrix(), entries, parameter=name)
        hook = LayerHook(tracked, TwoSidedProjection(None, None), lambda layer: None)
        hook.begin(BatchShape(1, 3))
        hooks[tracked.weight.data_ptr()] = hook
    weights = [entries[name] for name in entries]
    return weights, list(hooks.values()), lambda tensor: hooks.get(tensor.data_ptr())


def gradient_of(hook):
    """G^T, (n, H), of what a hook has seen."""
    return sum((inputs.mT @ returned)[0].mT for inputs, returned in hook.tokens)


def test_a_later_weight_takes_rows_from_an_earlier_one():
    (first, second), hooks, hook_of = hooked(torch.randn(2, 4), torch.randn(2, 4))
    rows, table = ReplacedRows(hook_of), TABLE
    for delta, index in ((first, torch.tensor([1, 3])), (second, torch.tensor([3, 5]))):
        table_before, table = table, table.index_copy(0, index, delta)
        rows.note(torch.Tensor.index_copy, (table_before, 0, index, delta), {}, table)
    ids, weights = torch.tensor([[1, 3, 0]]), torch.randn(1, 3, 4)
    rows.seen(F.embedding, (ids, table), {}, F.embedding(ids, table.detach())).mul(weights).sum().backward()
    expected = torch.autograd.grad(F.embedding(ids, table).mul(weights).sum(), [first, second])
    for hook, gradient in zip(hooks, expected, strict=True):
        torch.testing.assert_close(gradient_of(hook), gradient)
    assert not bool(expected[0][1].any()), "the second weight's row"


def test_padding_and_products():
    (delta,), (hook,), hook_of = hooked(torch.randn(2, 4))
    index = torch.tensor([2, 4])
    table = TABLE.index_copy(0, index, delta)
    rows = ReplacedRows(hook_of)
    rows.note(torch.index_copy, (TABLE, 0, index, delta), {}, table)
    ids, inputs, weights = torch.tensor([[2, 4, 4]]), torch.randn(1, 3, 4), torch.randn(1, 3, 6)
    looked_up = rows.seen(F.embedding, (ids,), {"weight": table, "padding_idx": 2}, F.embedding(ids, table.detach()))
    product = rows.seen(F.linear, (inputs, table), {}, F.linear(inputs, table.detach()))
    (looked_up.sum() + (product * weights).sum()).backward()
    value = F.embedding(ids, table, padding_idx=2).sum() + (F.linear(inputs, table) * weights).sum()
    (expected,) = torch.autograd.grad(value, [delta])
    torch.testing.assert_close(gradient_of(hook), expected)


def test_other_tables_and_functions_pass():
    _, (hook,), hook_of = hooked(torch.randn(2, 4))
    rows, ids = ReplacedRows(hook_of), torch.tensor([[2]])
    other = TABLE.index_copy(1, torch.tensor([0]), torch.randn(6, 1))
    rows.note(torch.Tensor.index_copy, (TABLE, 1, torch.tensor([0]), torch.randn(6, 1)), {}, other)
    result = F.embedding(ids, other)
    assert rows.seen(F.embedding, (ids, other), {}, result) is result and not hook.tokens

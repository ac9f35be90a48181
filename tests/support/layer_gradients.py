"""What a kind of layer says of a module's call, beside what autograd says of each example alone."""

from typing import Any

import torch
from torch import Tensor, nn

from lorif_hf.algebra.sides import as_vectors
from lorif_hf.layers import BatchShape, kind_of


def spread(module: nn.Module) -> nn.Module:
    """The module in eval mode, with parameters that are neither 0 nor 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) + 0.3)
    return module.eval()


def both_gradients(
    module: nn.Module,
    parameter: str,
    *inputs: Tensor,
    examples: int | None = None,
    tokens: int | None = None,
    **kw: Any,
) -> tuple[Tensor, Tensor]:
    """X^T dY of every example, and autograd's gradient of each alone, both (B, I, O), for a random output gradient.

    `examples`: where the inputs are not batched (1).
    """
    kind = kind_of(module, parameter)
    assert kind is not None
    weight = getattr(module, parameter)
    output = module(*inputs, **kw)
    returned = torch.randn_like(output)
    batch = BatchShape(len(output) if examples is None else examples, tokens)
    told = kind.tokens(module, parameter, inputs, kw, batch)
    x, dy = as_vectors(told.inputs), as_vectors(told.output_gradients(returned))
    if batch.examples == 1:
        parts = [torch.autograd.grad(output, weight, returned)[0]]
    else:
        rows, sides = output.unflatten(0, (batch.examples, -1)), returned.unflatten(0, (batch.examples, -1))
        parts = [torch.autograd.grad(r, weight, s, retain_graph=True)[0] for r, s in zip(rows, sides, strict=True)]
    expected = torch.stack([kind.as_matrix(part) for part in parts])
    assert expected.shape[1:] == kind.shape(module, parameter).features and bool(expected.any())
    return x.mT @ dy.to(x.dtype), expected

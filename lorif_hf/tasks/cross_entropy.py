"""Cross-entropy whose gradient is made on the way: with a vocabulary of tens of thousands, as costly as a layer."""

from typing import Any

import torch
from torch import Tensor


IGNORED = -100
"""The label of a position that predicts nothing, as in transformers."""


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        counted = labels != IGNORED
        places = torch.where(counted, labels, 0).unsqueeze(1)
        gradient = torch.softmax(logits, dim=1)
        likelihoods = gradient.gather(1, places)
        losses = -likelihoods.log()
        # One that is no normal number is rounded coarsely, or to 0: there, from the likeliest class.
        lost = (likelihoods < torch.finfo(logits.dtype).tiny).nonzero()[:, 0]
        if len(lost):
            top, likeliest = (tensor[lost].amax(dim=1, keepdim=True) for tensor in (logits, gradient))
            losses[lost] = top - likeliest.log() - logits[lost].gather(1, places[lost])
        gradient.scatter_add_(1, places, torch.full_like(losses, -1))
        gradient.index_fill_(0, (~counted).nonzero()[:, 0], 0)  # a mask would be read once for each class
        ctx.save_for_backward(gradient, counted)
        return torch.where(counted, losses.squeeze(1), 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        gradient, counted = ctx.saved_tensors
        # Of a sum over tokens, upstream is one everywhere: a pass over the vocabulary less.
        plain = bool(((upstream == 1) | ~counted).all())
        return (gradient if plain else gradient * upstream.unsqueeze(1)), None


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] of each position, in nats; 0 where the label is -100. Differentiable once.

    The same as `torch.nn.functional.cross_entropy(..., reduction="none")`, without the log-probabilities and the
    gradient with regard to them, each as large as the logits.

    Args:
        logits (`Tensor`): (n, classes), floating point.
        labels (`Tensor`): int64 (n,), each below the number of classes or -100.

    Returns:
        `Tensor`: (n,), of the dtype of the logits.

    Raises:
        `IndexError`: a label is none of the classes.
    """
    outside = ((labels < 0) & (labels != IGNORED)) | (labels >= logits.shape[1])
    if bool(outside.any()):
        raise IndexError(f"label {int(labels[outside][0])} is out of bounds: there are {logits.shape[1]} classes")
    return _CrossEntropy.apply(logits, labels)

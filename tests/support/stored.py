"""Gradients with a falling spectrum, for codecs to store."""

import torch
from torch import Tensor


D1, D2 = 9, 7


def gradients(count: int = 12, seed: int = 0, decay: float = 0.7) -> Tensor:
    """(n, D1, D2), float32."""
    generator = torch.Generator().manual_seed(seed)
    scale = decay ** torch.arange(D1).view(-1, 1) * decay ** torch.arange(D2)
    return torch.randn(count, D1, D2, generator=generator) * scale

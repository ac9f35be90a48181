"""What autograd says of the weights that an index tracks: the obvious, beside which what it holds is put."""

from typing import Any

import torch
from torch import Tensor

from lorif_hf import InfluenceIndex
from lorif_hf.algebra.projection import project
from lorif_hf.curvature.encoding import checked_projection
from lorif_hf.layers.modules import PEFT_PREFIX
from lorif_hf.registry import LAYER_KINDS


def tracked_weights(index: InfluenceIndex, model: Any) -> dict[str, Tensor]:
    """The parameters that an index tracks, by their names in it."""
    named = model.named_parameters(remove_duplicate=False)
    parameters = {name.removeprefix(PEFT_PREFIX): parameter for name, parameter in named}
    return {
        entry.name: parameters[f"{entry.name}.weight" if entry.parameter == "weight" else entry.name]
        for entry in index.manifest.modules
    }


def projected(index: InfluenceIndex, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """P_in^T G P_out of weights' gradients, by name, float64 (d1 d2,): most projections here are none, but a gradient
    of a vocabulary or of many experts is never kept at its full size."""
    flat = {}
    for entry in index.manifest.modules:
        matrix = LAYER_KINDS.get(entry.kind).as_matrix(gradients[entry.name].double())
        signs = checked_projection(entry, index.config).to(matrix.device, matrix.dtype)
        flat[entry.name] = project(project(matrix, signs.out_signs).mT, signs.in_signs).mT.flatten()
    return flat


def row_gradients(index: InfluenceIndex, model: Any, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of a row's loss with regard to what an index tracks, as the index keeps it: float64 (d1 d2,)."""
    weights = tracked_weights(index, model)
    parts = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    pairs = zip(weights.items(), parts, strict=True)
    return projected(index, {n: torch.zeros_like(w) if part is None else part for (n, w), part in pairs})

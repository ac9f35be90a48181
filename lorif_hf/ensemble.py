"""Scores averaged over several checkpoints, as TRAK ensembles them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import QueryError


if TYPE_CHECKING:
    from .index import InfluenceIndex


def ensemble_scores(
    indices: Sequence["InfluenceIndex"], models: Sequence[nn.Module | str], queries: Any, **options: Any
) -> Tensor:
    """Scores of the same training set under several models, each with an index of its own.

    The products and the examples' weights are averaged apart and multiplied at the end.

    Args:
        indices (`Sequence[InfluenceIndex]`): one for each model, all of the same rows.
        models (`Sequence`): the models, in the same order.
        queries: as in [`InfluenceIndex.attribute`].
        options: the other arguments of [`InfluenceIndex.scores`].

    Returns:
        `Tensor`: float32 (Q, N). Positive: a proponent.

    Raises:
        [`~lorif_hf.errors.QueryError`]: another number of models than of indices, or indices of other rows.

    Source: TRAK (Park et al. 2023, arXiv:2303.14186), the ensembled estimator.
    """
    if not indices or len(indices) != len(models):
        raise QueryError(f"Each index needs its model: got {len(indices)} indices and {len(models)} models.")
    rows = [(len(index), index.manifest.dataset.get("fingerprint")) for index in indices]
    if len(set(rows)) > 1:
        raise QueryError("The indices are of other rows: an ensemble is of one training set under several models.")
    total = torch.zeros(())
    for index, model in zip(indices, models, strict=True):
        total = total + index.scores(model, queries, weighted=False, **options)
    weights = torch.stack([index.example_weights() for index in indices]).mean(dim=0)
    return total / len(indices) * weights

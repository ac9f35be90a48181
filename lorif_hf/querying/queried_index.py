"""What a query needs of an index."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algebra.projection import TwoSidedProjection
from ..codecs import Codec, codec_of
from ..config import InfluenceConfig
from ..curvature import Curvature, curvature_of
from ..curvature.base import Tensors
from ..curvature.encoding import checked_projection, stored_entries
from ..errors import QueryError
from ..layers.modules import matches
from ..storage.layout import Manifest, ModuleEntry
from ..storage.once import Once
from ..storage.shards import ShardReader


@dataclass(frozen=True)
class QueriedIndex:
    """What a query needs of an index.

    Args:
        manifest (`Manifest`): what it is.
        config (`InfluenceConfig`): what it was built with.
        reader (`ShardReader`): of its files.
        rows (`Tensor` or `None`): the selected rows, ascending; `None`: all.
        projections (`Once`): those that queries have drawn so far: drawing them anew would take longer than scoring a
            small index.
        firsts (`Once`): what queries have read so far of what the first pass kept, and checked.
    """

    manifest: Manifest
    config: InfluenceConfig
    reader: ShardReader
    rows: Tensor | None = None
    projections: Once[str, TwoSidedProjection] = field(default_factory=Once)
    firsts: Once[str, Tensors] = field(default_factory=Once)

    @cached_property
    def codec(self) -> Codec:
        return codec_of(self.config)

    @cached_property
    def curvature(self) -> Curvature:
        return curvature_of(self.config)

    def projection(self, entry: ModuleEntry) -> TwoSidedProjection:
        """The projection of a layer, drawn where no query has yet."""
        return self.projections.get(entry.name, lambda: checked_projection(entry, self.config))

    def first(self, entry: ModuleEntry) -> Tensors:
        """What the curvature's first pass kept of a layer; nothing where it has none."""
        first_pass = self.curvature.first_pass
        if first_pass is None:
            return {}
        return self.firsts.get(entry.name, lambda: first_pass.load(self.reader.curvature(entry), entry))

    @property
    def count(self) -> int:
        """Rows that are scored."""
        return self.manifest.num_examples if self.rows is None else len(self.rows)

    def scored(self, pattern: str | Sequence[str] | None) -> list[ModuleEntry]:
        """What is scored: all that is stored, or the modules whose names match, as `target_modules` does.

        Raises:
            [`~lorif_hf.errors.QueryError`]: none does, or the layers cannot be told apart.
        """
        modules = self.manifest.modules
        if pattern is None:
            return stored_entries(self.config, modules)
        if self.config.projection_dim is not None:
            raise QueryError(
                "This index projects all layers together (projection_dim): its scores have no single modules."
            )
        try:
            chosen = [entry for entry in modules if matches(entry.name, pattern)]
        except re.error as error:
            raise QueryError(f"modules={pattern!r} is not a valid regular expression ({error}).") from None
        if not chosen:
            raise QueryError(
                f"modules={pattern!r} matches none of the index's {len(modules)} modules, for example "
                f"'{modules[0].name}'."
            )
        return chosen


def chosen_rows(rows: Any) -> Tensor:
    """Row numbers as a user gives them: int64, ascending, each once.

    Raises:
        [`~lorif_hf.errors.QueryError`]: there are none, or they are no numbers of rows.
    """
    given = torch.as_tensor(rows if isinstance(rows, (Tensor, np.ndarray)) else list(rows))
    if given.dtype == torch.bool or (given.is_floating_point() and given.numel()):
        raise QueryError(f"select() takes row numbers, got {given.dtype}; of a mask take mask.nonzero()[:, 0].")
    chosen = given.long().flatten().unique()
    if not len(chosen):
        raise QueryError("select() needs at least one row.")
    return chosen

"""The rows of an index as examples for people: the part of `InfluenceIndex` that reads its example table."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from ..errors import QueryError
from ..storage.examples import ROW_GROUP, read_column, read_examples, table_of
from ..storage.layout import Manifest
from ..storage.store import Store


if TYPE_CHECKING:
    import datasets
    import pandas as pd


class IndexedExamples:
    """A sequence of the examples that are indexed, or of those that are selected of them.

    Attributes:
        manifest (`Manifest`): of the index.
    """

    manifest: Manifest
    _store: Store
    _rows: Tensor | None  # those that are selected, ascending; `None`: all

    def __len__(self) -> int:
        return self.manifest.num_examples if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, place: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, place: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """The example at a place, as [`~InfluenceIndex.examples`] gives it, or a list of those of a slice.

        Of a selection, places count the selected rows; the column "row" is the row of the training set.

        Example:

        ```python
        index[0]["text"], [example["loss"] for example in index[-5:]]
        ```
        """
        if isinstance(place, slice):
            places = range(len(self))[place]
            return read_examples(self._store, self.manifest, [self._row(number) for number in places])
        if isinstance(place, bool) or not hasattr(place, "__index__"):
            raise TypeError(f"index[...] takes a row number or a slice, got {place!r}; of a list of rows, examples().")
        (example,) = read_examples(self._store, self.manifest, [self._row(range(len(self))[place])])
        return example

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The examples one after another, read in blocks."""
        for shard in self.manifest.examples:
            for start in range(shard.start, shard.stop, ROW_GROUP):
                block = range(start, min(start + ROW_GROUP, shard.stop))
                if self._rows is None:
                    rows: Sequence[int] = block
                else:
                    first, last = torch.searchsorted(self._rows, torch.tensor([block.start, block.stop])).tolist()
                    rows = self._rows[first:last].tolist()
                yield from read_examples(self._store, self.manifest, rows)

    def examples(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The examples of the given rows: row, example_id, text, num_tokens, loss (nats), self_influence, and the
        columns of your own that the index was built with.

        Documents of packed rows have source_row (their row of the dataset), start and stop (their tokens there) and
        document (the same of all pieces of one that packing cut; None: unknown) beside it.

        Example:

        ```python
        worst = index.self_influence().topk(5).indices.tolist()
        for example in index.examples(worst):
            print(example["self_influence"], example["text"])
        ```
        """
        self._check_rows(rows)
        return read_examples(self._store, self.manifest, rows)

    def self_influence(self) -> Tensor:
        """Each example's influence on its own loss, float64 (N,), in nats per unit of weight; never negative.

        Computed when the index was built: sum over layers of vec(G~_i)^T H^-1 vec(G~_i), of the whole gradients where
        the metric is known while they are recorded (`curvature` "kronecker" or "none"), else of the stored factors. Of
        whitened layers that are too wide to be formed it is an unbiased estimate (Hutchinson's).
        High values mark rows the model had to memorise: mislabelled, rare or damaged ones.

        Example:

        ```python
        >>> index.examples(index.self_influence().topk(10).indices.tolist())
        ```
        """
        influence = torch.from_numpy(np.array(read_column(self._store, self.manifest, "self_influence")))
        return influence if self._rows is None else influence[self._rows]

    def to_pandas(self) -> "pd.DataFrame":
        """All examples as a `pandas.DataFrame`, a row each.

        Example:

        ```python
        index.to_pandas().sort_values("self_influence", ascending=False).head()
        ```
        """
        import pandas as pd

        return pd.DataFrame(list(self), columns=self._columns)

    def to_dataset(self) -> "datasets.Dataset":
        """All examples as a `datasets.Dataset`.

        Example:

        ```python
        index.to_dataset().filter(lambda example: example["self_influence"] < 10)
        ```
        """
        import datasets

        return datasets.Dataset(table_of(self._store, self.manifest, self))

    @property
    def _columns(self) -> list[str]:
        """Names of the columns of the example table."""
        return list(table_of(self._store, self.manifest, ()).column_names)

    def _row(self, place: int) -> int:
        """The row of the training set at a place that there is."""
        return place if self._rows is None else int(self._rows[place])

    def _check_rows(self, rows: Sequence[int]) -> None:
        count = self.manifest.num_examples
        outside = [row for row in rows if not 0 <= row < count]
        if outside:
            raise QueryError(f"Row {outside[0]} is outside the index, which has rows 0 to {count - 1}.")

"""`InfluenceIndex`: build, load, query, push. A facade: the work is in build, query, storage and algebra."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .codecs import codec_of
from .coverage import Coverage
from .index_build import BuiltIndex
from .querying.index_tokenizer import confined_tokenizer, load_tokenizer
from .querying.queried_index import QueriedIndex, chosen_rows
from .querying.verify import verify_index
from .reports.queried_examples import QueriedExamples
from .storage.shards import ShardReader
from .storage.store import Store


class InfluenceIndex(QueriedExamples, BuiltIndex):
    """An index of a training set: rank-c gradient factors of every example, and the curvature to query them with.

    Make one with [`~InfluenceIndex.build`] (or `InfluenceCallback` at the end of a training), load one with
    [`~InfluenceIndex.from_pretrained`].

    It is a sequence of the examples that are indexed: `len(index)`, `index[3]["text"]`, `for example in index`.

    Sign and unit of every score: a positive score is a *proponent*, training on that example more lowers the query's
    loss. Scores are in nats per unit of example weight, summed over the tracked layers.

    Example:

    ```python
    >>> index = InfluenceIndex.from_pretrained("me/my-index")
    >>> result = index.attribute("me/my-model", ("The capital of France is", " Paris"), top_k=10)
    >>> result.to_pandas()
    ```
    """

    def __init__(self, store: Store, rows: Tensor | None = None):
        super().__init__(store, rows)
        layout = codec_of(self.config).layout
        reader = ShardReader(store, self.manifest.shards, self.manifest.curvature, layout)
        self._queried = QueriedIndex(self.manifest, self.config, reader, rows)
        self._processing_class = None
        self._asked_tokenizer = confined_tokenizer(store, self.manifest)

    def select(self, rows: Sequence[int]) -> "InfluenceIndex":
        """The same index over some of its rows: queries read and score these alone.

        Args:
            rows (`Sequence[int]`): row numbers; sorted, each counted once.

        Example:

        ```python
        >>> index.select(range(1000)).attribute(model, "The capital of France is Paris")
        ```
        """
        chosen = chosen_rows(rows)
        self._check_rows([int(chosen[0]), int(chosen[-1])])
        view = InfluenceIndex(self._store, chosen)
        view._token = self._token
        view._processing_class, view._asked_tokenizer = self._processing_class, self._asked_tokenizer
        view._queried = replace(self._queried, reader=view._queried.reader, rows=chosen)
        return view

    def __repr__(self) -> str:
        model = self.manifest.model
        return (
            f"InfluenceIndex({self.repo_id or str(self.path)!r}, num_examples={len(self)}, "
            f"modules={len(self.manifest.modules)}, bytes_per_example={self.bytes_per_example:.0f}, "
            f"model={model.get('name') or model.get('model_class')!r})"
        )

    @property
    def bytes_per_example(self) -> float:
        """Bytes of factors stored per example, all layers together."""
        return sum(shard.bytes for shard in self.manifest.shards) / self.manifest.num_examples

    @property
    def coverage(self) -> Coverage:
        """How much of what was trained is tracked (`.share`), and which parameters are not, and why (`.untracked`)."""
        return self.manifest.coverage

    @property
    def processing_class(self) -> Any:
        """The tokenizer, processor, image processor or feature extractor that came with the index, or `None`: loaded
        into this process, whoever made it.

        Text queries do without: they ask the tokenizer in a process with limits, unless the index was built in this
        process or `processing_class=` is passed. Images and sounds need `processing_class=` then.
        """
        if self._processing_class is None:
            self._processing_class = load_tokenizer(self._store, self.manifest)
        return self._processing_class

    def verify(self) -> None:
        """Read every file anew and check it; downloads what is not here.

        Every flipped bit is found, but in what the card says: the manifest by its own hash, the other files by the
        hashes in it. The projections are drawn and compared, and all that is stored is finite.

        Raises:
            [`~lorif_hf.errors.IndexCorruptedError`], [`~lorif_hf.errors.IndexFormatError`]: name the first file that
                is not what it should be.

        Example:

        ```python
        >>> index.verify()
        ```
        """
        verify_index(self._queried, self._store)

"""`InfluenceIndex`: build, load, query. A facade: the work is in build, query, storage and algebra."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .algebra.scoring import RunningTopK
from .attribution import Attribution
from .build import IndexBuilder, check_folder
from .config import InfluenceConfig
from .dataset import TrainingRows
from .errors import ConfigError, IndexFormatError, QueryError
from .query import MeasuredQueries, load_model, measure, score_shards
from .recording.modules import unwrap
from .recording.objectives import UserObjective, find_objective
from .storage.examples import read_column, read_examples
from .storage.files import verified
from .storage.layout import MANIFEST, TOKENIZER, Manifest
from .storage.shards import ShardReader


class InfluenceIndex:
    """An index of a training set: rank-c gradient factors of every example, and the curvature to query them with.

    Make one with [`~InfluenceIndex.build`] (or `InfluenceCallback` at the end of a training), load one with
    [`~InfluenceIndex.from_pretrained`].

    Sign and unit of every score: a positive score is a *proponent*, training on that example more lowers the query's
    loss. Scores are in nats per unit of example weight, summed over the tracked layers.

    Attributes:
        path (`Path`): the index's folder.
        config (`InfluenceConfig`): what it was built with.
        manifest (`Manifest`): every file of it, the layers and the model's identity.
    """

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest
        try:
            self.config = InfluenceConfig.from_dict(manifest.config)
        except ConfigError as error:
            raise IndexFormatError(f"{MANIFEST} of {path} holds no valid config: {error}") from error
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        self._reader = ShardReader(path, manifest.shards, manifest.curvature, dtype, self.config.factor_rank)
        self._processing_class: Any = None

    @classmethod
    def build(
        cls,
        model: nn.Module,
        dataset: Any,
        path: str | os.PathLike[str],
        *,
        config: InfluenceConfig | None = None,
        processing_class: Any = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        batch_size: int = 8,
        objective: UserObjective | None = None,
        examples: Any = None,
        text_column: str | None = None,
        example_id: str | None = None,
        store_text: bool | int = True,
    ) -> "InfluenceIndex":
        """Record every row of `dataset` with `model` as it is now and write the index to `path`.

        Row i of the index is row i of `dataset`. A build that was interrupted goes on when called again with the same
        arguments (the batch size may differ) and ends with the same bytes.

        Args:
            model (`nn.Module`): a transformers model or a `PeftModel` with LoRA adapters.
            dataset: a tokenized map-style dataset (`datasets.Dataset`, or anything with `len` and indexing).
            path (`str` or `os.PathLike`): folder of the index; absent, empty, or holding this unfinished build.
            config (`InfluenceConfig`, *optional*): by default `InfluenceConfig()`.
            processing_class (*optional*): the tokenizer; goes into the index, so that it answers text queries.
            data_collator (`Callable`, *optional*): by default pads on the right, labels with -100.
            batch_size (`int`, *optional*, defaults to 8): examples per forward pass. Does not change the result.
            objective (`Callable`, *optional*): `(model, batch) -> (B,)` per-example losses in nats; by default that of
                the model's task: token-summed cross-entropy, or the classifier's loss.
            examples (*optional*): the same rows with columns for people, where `dataset` has lost them.
            text_column (`str`, *optional*): column shown as text; "text" if there is one, else decoded `input_ids`.
            example_id (`str`, *optional*): column with your own name for each row.
            store_text (`bool` or `int`, *optional*, defaults to `True`): whole text, so many characters, or none.

        Returns:
            `InfluenceIndex`: the finished index.

        Raises:
            [`~lorif_hf.errors.LorifError`]: a typed one for everything that can be wrong with the input; finished
            shards are kept.
        """
        model = unwrap(model)
        folder = Path(path)
        check_folder(folder)
        found = find_objective(model, objective)
        rows = TrainingRows(
            dataset, model, found, processing_class, data_collator, examples, text_column, example_id, store_text
        )
        config = config or InfluenceConfig()
        IndexBuilder(model, rows, folder, config, found, processing_class, batch_size).run()
        index = cls.from_pretrained(folder)
        index._processing_class = processing_class
        return index

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> "InfluenceIndex":
        """Load an index from a folder. Reads the manifest only; the rest is read, and checked, when it is needed.

        Args:
            path (`str` or `os.PathLike`): folder of the index.

        Raises:
            [`~lorif_hf.errors.IndexFormatError`]: the folder is no index.
            [`~lorif_hf.errors.IndexCorruptedError`]: its manifest is damaged.
        """
        folder = Path(path)
        if not (folder / MANIFEST).is_file():
            what = "holds no index" if folder.is_dir() else "does not exist"
            raise IndexFormatError(f"{folder} {what}: expected a folder with {MANIFEST}.")
        return cls(folder, Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8")))

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Copy the index, every file checked, to another folder."""
        target = Path(path)
        if target.resolve() == self.path.resolve():
            return
        check_folder(target)
        for entry in self.manifest.files:
            source = verified(self.path, entry)
            (target / entry.file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / entry.file)
        shutil.copyfile(self.path / MANIFEST, target / MANIFEST)

    def __len__(self) -> int:
        return self.manifest.num_examples

    def __repr__(self) -> str:
        model = self.manifest.model
        return (
            f"InfluenceIndex({str(self.path)!r}, num_examples={len(self)}, modules={len(self.manifest.modules)}, "
            f"bytes_per_example={self.bytes_per_example:.0f}, model={model.get('name') or model.get('model_class')!r})"
        )

    @property
    def bytes_per_example(self) -> float:
        """Bytes of factors stored per example, all layers together."""
        return sum(shard.bytes for shard in self.manifest.shards) / len(self)

    @property
    def processing_class(self) -> Any:
        """The tokenizer that came with the index, or `None`."""
        if self._processing_class is None and self.manifest.tokenizer:
            from transformers import AutoTokenizer

            for entry in self.manifest.tokenizer:
                verified(self.path, entry)
            self._processing_class = AutoTokenizer.from_pretrained(self.path / TOKENIZER, trust_remote_code=False)
        return self._processing_class

    def attribute(
        self,
        model: nn.Module | str,
        query: Any,
        top_k: int = 10,
        *,
        largest: bool = True,
        processing_class: Any = None,
        objective: UserObjective | None = None,
        batch_size: int = 8,
        strict: bool = True,
    ) -> Attribution:
        """The training examples that made the model say this, ranked.

        Args:
            model (`nn.Module` or `str`): the model that was indexed, or a Hub id or folder to load it from.
            query: a string; a (prompt, completion) pair, measured on the completion; chat messages, measured on the
                last answer; a (text, label) pair for a classifier; a dict with `input_ids`; a list of these; a
                `Dataset`.
            top_k (`int`, *optional*, defaults to 10): k, examples per query; at most N come out.
            largest (`bool`, *optional*, defaults to `True`): proponents first; `False` gives opponents, most negative
                first.
            processing_class (*optional*): tokenizer for text queries; by default the one in the index.
            objective (`Callable`, *optional*): what to measure, `(model, batch) -> (Q,)`; by default the loss.
            batch_size (`int`, *optional*, defaults to 8): queries per forward pass.
            strict (`bool`, *optional*, defaults to `True`): refuse a model with other weights; `False` warns.

        Returns:
            [`Attribution`]: scores and rows of shape (Q, k), joined to the examples. Scores are in nats per unit of
            example weight; positive: training on the example more lowers the query's loss.

        Raises:
            [`~lorif_hf.errors.QueryError`], [`~lorif_hf.errors.ModelMismatchError`],
            [`~lorif_hf.errors.IndexCorruptedError`].
        """
        if not isinstance(top_k, int) or top_k < 1:
            raise QueryError(f"top_k must be an integer of at least 1, got {top_k!r}.")
        measured = self._measure(model, query, processing_class, objective, batch_size, strict)
        best = RunningTopK(len(measured.texts), top_k, largest)
        for start, scores in score_shards(measured, self._reader, self.manifest.modules):
            best.update(torch.stack(list(scores.values())).sum(dim=0), start)
        rows = best.indices.unique().tolist()
        examples = dict(zip(rows, read_examples(self.path, self.manifest, rows), strict=True))
        return Attribution(best.scores, best.indices, examples, measured.texts, measured.losses)

    def scores(
        self,
        model: nn.Module | str,
        queries: Any,
        *,
        per_module: bool = False,
        processing_class: Any = None,
        objective: UserObjective | None = None,
        batch_size: int = 8,
        strict: bool = True,
    ) -> Any:
        """Every score, dense. The arguments are those of [`~InfluenceIndex.attribute`].

        Args:
            per_module (`bool`, *optional*, defaults to `False`): give the scores layer by layer instead of their sum.

        Returns:
            `Tensor` of float32 (Q, N), or a `dict` of these by module name. Nats per unit of example weight; positive:
            a proponent. A tensor that would take over half of the free memory is a memory map of a temporary file.
        """
        measured = self._measure(model, queries, processing_class, objective, batch_size, strict)
        shape = (len(measured.texts), len(self))
        names = [module.name for module in self.manifest.modules]
        dense = _allocate((len(names), *shape) if per_module else shape)
        for start, scores in score_shards(measured, self._reader, self.manifest.modules):
            block = torch.stack(list(scores.values()))
            dense[..., start : start + block.shape[-1]] = block if per_module else block.sum(dim=0)
        return dict(zip(names, dense, strict=True)) if per_module else dense

    def self_influence(self) -> Tensor:
        """Each example's influence on its own loss, float64 (N,), in nats per unit of weight; never negative.

        Computed from the stored factors when the index was built: sum over layers of vec(G~_i)^T H^-1 vec(G~_i). High
        values mark rows the model had to memorise: mislabelled, rare or damaged ones.
        """
        return torch.from_numpy(np.array(read_column(self.path, self.manifest, "self_influence")))

    def examples(self, rows: list[int]) -> list[dict[str, Any]]:
        """The examples of the given rows: row, example_id, text, num_tokens, loss (nats), self_influence."""
        outside = [row for row in rows if not 0 <= row < len(self)]
        if outside:
            raise QueryError(f"Row {outside[0]} is outside the index, which has rows 0 to {len(self) - 1}.")
        return read_examples(self.path, self.manifest, rows)

    def _measure(
        self, model: Any, query: Any, processing_class: Any, objective: Any, batch_size: int, strict: bool
    ) -> MeasuredQueries:
        if isinstance(model, (str, os.PathLike)):
            model = load_model(os.fspath(model), self.manifest.model)
        return measure(
            model,
            query,
            manifest=self.manifest,
            config=self.config,
            reader=self._reader,
            processing_class=processing_class or self.processing_class,
            objective=objective,
            batch_size=batch_size,
            strict=strict,
        )


def _allocate(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor, in a temporary file where it would take over half of the free memory."""
    numbers = int(np.prod(shape))
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = 1 << 32  # a system that does not tell: take 4 GiB
    if numbers * 4 <= free // 2:
        return torch.empty(shape)
    with tempfile.TemporaryFile() as file:  # the map keeps the file alive until the tensor is gone
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))

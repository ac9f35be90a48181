"""What single tokens add to a score: those of a query's answer, and those of a training row.

A score is an inner product of two sums over tokens. The answer's tokens are queries of their own. A row's token adds
x_t^T Q~ dy_t in each layer, of its input and its output gradient there, projected and whitened.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..algebra.matrices import LowRankMatrices, Matrices, Reduction
from ..algebra.scoring import QueryGroup
from ..errors import LorifError, QueryError
from ..layers.experts import EXPERTS
from ..recording.recorder import GradientRecorder, without_gradient
from ..recording.rows import tokens_per_example
from ..tasks import Feature
from ..tasks.objectives import OUTPUTS
from ..tasks.query_forms import query_features
from ..tasks.query_texts import decoded
from ..tasks.text import TextReader
from .answers import all_scores
from .measure import MeasuredQueries, Measurement


logger = logging.getLogger(__name__)

_SAME_LOSS = 0.02  # relative: what the rounding of another batch may change, of a model in bfloat16 too
_LABELS = ("label", "labels")

Pairs = dict[tuple[int, int], list[float]]
"""By query and row, a number for each token."""


@dataclass(frozen=True)
class RowShares:
    """The tokens of some rows, and what they add.

    Args:
        tokens (`dict[int, list[str]]`): by row, its tokens as text.
        shares (`Pairs`): by query and row, what each adds to the score of the row's gradient, which was neither cut
            nor rounded yet: nats per unit of example weight.
    """

    tokens: dict[int, list[str]] = field(default_factory=dict)
    shares: Pairs = field(default_factory=dict)


def check_shares(asked: Measurement) -> None:
    """See that the scores of what is asked are sums over tokens.

    Raises:
        [`~lorif_hf.errors.QueryError`]: they are not; says why.
    """
    config = asked.index.config
    why = None
    if config.joins_layers:
        why = "projects all layers together (projection_dim)"
    elif config.normalize:
        why = "divides gradients by their norm (normalize)"
    elif asked.tokens is not None:
        raise QueryError("shade=True shows what tokens add to the scores of whole queries: leave out per_token=.")
    if why is not None:
        raise QueryError(f"This index {why}, so its scores are no sums over tokens: leave out shade=.")


def query_shares(asked: Measurement, pairs: Sequence[tuple[int, int]]) -> tuple[list[list[str]], Pairs]:
    """The tokens of each query's answer, and what each adds to the scores of the query's rows.

    Args:
        asked (`Measurement`): the queries, whole.
        pairs (`Sequence[tuple[int, int]]`): queries and rows.

    Returns:
        The tokens and the shares; none where a query is no sum over tokens, or is cut (`factorize_query`).
    """
    nothing: tuple[list[list[str]], Pairs] = ([[] for _ in asked.texts], {})
    if asked.options.reduce is not None or asked.index.config.factorize_query or not pairs:
        return nothing
    rows = sorted({row for _, row in pairs})
    try:
        apart = asked.token_by_token(torch.tensor(rows))
    except QueryError:  # of images, labels, pairs of completions
        return nothing
    assert apart.tokens is not None
    scores = all_scores(apart, weighted=True, per_module=False).scores
    place = {row: number for number, row in enumerate(rows)}
    lengths = [len(tokens) for tokens in apart.tokens]
    shares = {(query, row): scores[query, : lengths[query], place[row]].tolist() for query, row in pairs}
    return apart.tokens, shares


def row_shares(
    asked: Measurement,
    prepared: MeasuredQueries,
    pairs: Sequence[tuple[int, int]],
    examples: Mapping[int, Mapping[str, Any]],
) -> RowShares:
    """The tokens of training rows, and what each adds to the rows' scores.

    A row is made again of its text. Where that does not give the tokens and the loss that were recorded of it (a cut
    text, a prompt that was masked, a chat, another model), the row is left out.

    Args:
        asked (`Measurement`): the queries, whole.
        prepared (`MeasuredQueries`): they, preconditioned.
        pairs (`Sequence[tuple[int, int]]`): queries and rows.
        examples (`Mapping[int, Mapping]`): of the rows: text, num_tokens and loss (nats), label where there is one.

    Raises:
        [`~lorif_hf.errors.QueryError`]: no row has a text.
    """
    wanted: dict[int, list[int]] = {}
    for query, row in pairs:
        wanted.setdefault(row, []).append(query)
    texts = {row: examples[row]["text"] for row in wanted}
    if wanted and not any(texts.values()):
        raise QueryError(
            "shade=True makes the rows anew of their texts, and none of these is in this index (store_text=False): "
            "leave it out."
        )
    shares, left_out = RowShares(), []
    recorder = _ShareRecorder(asked, prepared)
    for row, queries in sorted(wanted.items()):
        made = recorder.of_row(examples[row], row) if texts[row] else None
        if made is None:
            left_out.append(row)
            continue
        ids, values = made
        shares.tokens[row] = [*(recorder.text_of(token) for token in ids), *([""] * (values.shape[1] - len(ids)))]
        shares.shares.update({(query, row): values[query].tolist() for query in queries})
    if left_out:
        logger.warning(
            "%d of %d rows are not shaded, the first is row %d: their texts do not give the tokens and the loss that "
            "were recorded of them.",
            len(left_out),
            len(wanted),
            left_out[0],
        )
    return shares


class _ShareRecorder:
    """Records rows of which the products of every token with the queries are kept, and nothing else."""

    def __init__(self, asked: Measurement, prepared: MeasuredQueries):
        self.asked, self.prepared = asked, prepared
        self.objective = OUTPUTS[asked.index.config.output](asked.task)
        self._reader = TextReader(asked.model, asked.options.processing_class)
        self._texts: dict[int, str] = {}
        self._length = 0  # T of the row that is recorded
        self._products: dict[str, Tensor] = {}  # by layer, (Q, T), or (Q, 1) where it sees something else than tokens
        self._recorder = GradientRecorder(
            asked.model,
            asked.modules,
            asked.projections,
            self.objective,
            reductions={tracked.name: self._reduction(tracked) for tracked in asked.modules},
            alone=asked.index.manifest.alone or self.objective.task.alone,
            scales=asked.encoder.in_scales(),
        )

    def of_row(self, example: Mapping[str, Any], row: int) -> tuple[list[int], Tensor] | None:
        """The tokens of a row, T of them, and what each adds to each query's score, (Q, T), or (Q, T + 1) with what
        no single token adds (in a layer that sees a pooled one); `None`: they are not those that were recorded."""
        for feature in self._features(example, row):
            try:
                batch = self.asked.collator([feature])
                if int(tokens_per_example(batch, 1, self.objective.task)[0]) != example["num_tokens"]:
                    continue
                tokens = torch.as_tensor(batch["input_ids"])[0].tolist()
                self._length, self._products = len(tokens), {}
                with self._recorder:
                    recording = self._recorder.record(batch, [row])
            except (LorifError, LookupError, ValueError, RuntimeError):  # a text that the model does not take
                continue
            if abs(float(recording.losses[0]) - example["loss"]) > _SAME_LOSS * (1 + abs(example["loss"])):
                continue
            weight = 1.0 if recording.weights is None else float(recording.weights[0])
            return tokens, self._summed() * weight
        return None

    def text_of(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = decoded([token], self.asked.options.processing_class)
        return self._texts[token]

    def _features(self, example: Mapping[str, Any], row: int) -> Iterator[Feature]:
        """What a row's text may have been to the model: with the tokenizer's special tokens, or with those alone that
        are in it."""
        asked, label = self.asked, next((example[name] for name in _LABELS if example.get(name) is not None), None)
        text: dict[str, Any] = {"text": example["text"]}
        if label is not None and asked.task.labelled_queries:
            text["label"] = label
        makers: list[Callable[[], Feature]] = [
            lambda: query_features(text, asked.model, asked.task, asked.options.processing_class)[0],
            lambda: {"input_ids": self._reader.tokens(example["text"], row, add_special_tokens=False)},
        ]
        for make in makers:
            try:
                yield make()
            except QueryError:
                continue

    def _reduction(self, tracked: Any) -> Reduction:
        """Keeps the products of a layer's tokens with the queries; of the gradient, whether it is finite."""
        groups = self.prepared.preconditioned.get(tracked.name, [])
        make = self.asked.reductions[tracked.name]
        # Of experts, all that a token brought to them come one after another; else call after call.
        slots = isinstance(tracked.kind, EXPERTS)

        def reduce(inputs: Tensor, output_gradients: Tensor) -> Matrices:
            count, length = inputs.shape[0] * inputs.shape[1], self._length
            each = make(inputs.reshape(count, 1, -1), output_gradients.reshape(count, 1, -1))
            products = torch.zeros(len(self.prepared.losses), count)
            for group in groups:
                products[group.query_ids.cpu()] = _products(group, each).cpu()
            if count % length:
                length = 1
            apart = (-1, length, count // length) if slots else (-1, count // length, length)
            self._products[tracked.name] = products.view(apart).sum(dim=2 if slots else 1)
            return without_gradient(inputs, output_gradients)

        return reduce

    def _summed(self) -> Tensor:
        """Over the layers: (Q, T), or (Q, T + 1)."""
        shares = torch.zeros(len(self.prepared.losses), self._length + 1, dtype=torch.float64)
        for products in self._products.values():
            if products.shape[1] == self._length:
                shares[:, :-1] += products
            else:
                shares[:, -1:] += products
        return shares if bool(shares[:, -1].any()) else shares[:, :-1]


def _products(group: QueryGroup, tokens: Matrices) -> Tensor:
    """Inner products (g, T) of queries with the gradients of single tokens, (T, d1, d2)."""
    place = group.left.device
    if not isinstance(tokens, LowRankMatrices):
        return group.matrices().flatten(1) @ tokens.to(place).flatten(1).T
    left, right = tokens.left[..., 0].to(place), tokens.right[..., 0].to(place)
    if group.right is None:
        return ((left @ group.left) * right).sum(dim=2)
    return ((group.left @ left.T) * (group.right @ right.T)).sum(dim=1)

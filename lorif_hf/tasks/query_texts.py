"""A query, and each token of its answer, as people read them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..layers.modules import base_model
from .base import Feature, Task
from .collation import LABELS
from .cross_entropy import IGNORED
from .text import inner_tokenizer, is_failure


_MOST_NUMBERS = 32  # of tokens that nothing can decode


def query_text(feature: Feature, processing_class: Any, targets: bool = False) -> str:
    """A feature as a person reads it: its text; its first tokens where it cannot be decoded; of other inputs than
    tokens, their names and shapes.

    Args:
        feature (`Feature`): the query.
        processing_class: the tokenizer, a processor with one, or `None`.
        targets (`bool`, *optional*, defaults to `False`): whether its labels are a text of their own, which is shown
            behind an arrow.
    """
    ids, labels = feature.get("input_ids"), _labels(feature)
    shown = _inputs(feature) if ids is None else decoded(torch.as_tensor(ids).flatten().tolist(), processing_class)
    if labels is None or not (targets or ids is None):
        return shown
    if targets and labels.dim() == 1 and not labels.is_floating_point():
        said = decoded(labels[labels != IGNORED].tolist(), processing_class)
    else:
        said = ", ".join(f"{value:g}" for value in labels.flatten()[:_MOST_NUMBERS].tolist())
    return f"{shown} → {said}"


def pair_text(features: Sequence[Feature], processing_class: Any) -> str:
    """Two completions as a person reads them, under what they have in common."""
    rows = [torch.as_tensor(feature["input_ids"]).tolist() for feature in features]
    shared = next((i for i, (a, b) in enumerate(zip(*rows, strict=False)) if a != b), min(map(len, rows)))
    chosen, rejected = (decoded(row[shared:], processing_class) for row in rows)
    return f"{decoded(rows[0][:shared], processing_class)}\nchosen: {chosen}\nrejected: {rejected}".lstrip("\n")


def prompt_length(features: Sequence[Feature], text: str, processing_class: Any) -> int | None:
    """How many characters of a query's text are its prompt: what stands before its answer and is not measured.

    Args:
        features (`Sequence[Feature]`): the query: one, or two completions.
        text (`str`): as [`query_text`] or [`pair_text`] gives it.
        processing_class: the tokenizer, a processor with one, or `None`.

    Returns:
        `int`; `None` where all of it is measured, or the prompt is not at the beginning of the text.
    """
    ids, labels = features[0].get("input_ids"), _labels(features[0])
    if ids is None or labels is None or labels.dim() != 1:
        return None
    tokens = torch.as_tensor(ids).flatten().tolist()
    if len(tokens) != len(labels):  # what a decoder says of what an encoder reads
        shown = decoded(tokens, processing_class)
        return len(shown) if text.startswith(f"{shown} → ") else None
    measured = (labels != IGNORED).nonzero()[:, 0].tolist()
    if not measured or not measured[0]:
        return None
    prompt = decoded(tokens[: measured[0]], processing_class)
    return len(prompt) if 0 < len(prompt) < len(text) and text.startswith(prompt) else None


def decoded(ids: list[int], processing_class: Any) -> str:
    """Tokens as text; their first numbers where they cannot be decoded."""
    tokenizer = inner_tokenizer(processing_class)
    # Tokenizers of speech take a letter twice for one that lasts.
    options = {"group_tokens": False} if hasattr(tokenizer, "word_delimiter_token") else {}
    if tokenizer is not None:
        try:
            return str(tokenizer.decode(ids, **options))
        except BaseException as error:
            if not is_failure(error):
                raise
    return " ".join(map(str, ids[:_MOST_NUMBERS]))


def target_texts(
    model: nn.Module, task: Task, feature: Feature, positions: Sequence[int], processing_class: Any
) -> list[str]:
    """The targets at some positions of a query's labels: tokens as text, classes by their names (and their token)."""
    labels = torch.as_tensor(feature["labels"])
    if not task.labelled_queries and task.label_kind != "classes":
        return [decoded([int(labels[position])], processing_class) for position in positions]
    names = getattr(getattr(base_model(model), "config", None), "id2label", None) or {}
    ids = feature.get("input_ids")
    texts = []
    for position in positions:
        name = str(names.get(int(labels[position]), int(labels[position])))
        beside = "" if ids is None else decoded([int(torch.as_tensor(ids)[position])], processing_class)
        texts.append(f"{beside} ({name})" if beside else name)
    return texts


def _labels(feature: Mapping[str, Any]) -> torch.Tensor | None:
    value = next((feature[name] for name in LABELS if feature.get(name) is not None), None)
    try:
        return None if value is None else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _inputs(feature: Mapping[str, Any]) -> str:
    """Names and shapes of inputs that are no tokens."""
    shapes = {}
    for name, value in feature.items():
        if name not in LABELS and not isinstance(value, (str, bytes, Mapping)):
            try:
                shapes[name] = tuple(torch.as_tensor(value).shape)
            except (TypeError, ValueError, RuntimeError):
                continue
    return ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes.items() if shape)

"""Which columns of a training set the model was trained on, and the rows as it takes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DatasetError, QueryError


if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from ..tasks import Task

_TOKENIZED = ("input_ids", "pixel_values", "input_features", "input_values")
_LABELS = ("label", "labels")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what the model was trained on: a text, a prompt and its completion, or a chat.

    Args:
        text (`str`, *optional*): whole texts.
        prompt, completion (`str`, *optional*): the completion alone was trained on. Texts, or chat messages.
        messages (`str`, *optional*): chats, trained on as a whole.
        label (`str`, *optional*): of a classifier's texts.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    label: str | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """The columns whose content is a row's text for people."""
        return tuple(name for name in (self.text, self.prompt, self.completion, self.messages) if name is not None)


def chosen_columns(rows: "Dataset", asked: Columns, labelled: bool) -> Columns | None:
    """The columns that were asked for, or those that a training set has by their usual names; `None`: it is tokenized.

    Args:
        rows (`Dataset`): the training set.
        asked (`Columns`): what the user said.
        labelled (`bool`): whether the model is a classifier, whose texts have labels.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: there is no such column, or nothing says which is meant.
    """
    names = rows.column_names
    for name in (*asked.shown, asked.label):
        if name is not None and name not in names:
            raise DatasetError(f"The training set has no column '{name}': its columns are {', '.join(names)}.")
    if (asked.prompt is None) != (asked.completion is None):
        lacking = "--prompt-column" if asked.prompt is None else "--completion-column"
        raise DatasetError(f"A prompt goes with its completion: pass {lacking} as well.")
    if sum(name is not None for name in (asked.text, asked.prompt, asked.messages)) > 1:
        raise DatasetError(
            "Pass one of --text-column, --messages-column, or --prompt-column with --completion-column."
        )
    if asked.shown:
        chosen = asked
    elif any(name in names for name in _TOKENIZED):
        return None
    elif "messages" in names:
        chosen = Columns(messages="messages")
    elif "prompt" in names and "completion" in names:
        chosen = Columns(prompt="prompt", completion="completion")
    elif "text" in names:
        chosen = Columns(text="text")
    else:
        texts = [name for name, feature in rows.features.items() if getattr(feature, "dtype", None) == "string"]
        if len(texts) != 1:
            raise DatasetError(
                f"Which column is the text? The training set has {', '.join(names)}: pass --text-column, "
                "--prompt-column and --completion-column, or --messages-column."
            )
        chosen = Columns(text=texts[0])
    label = asked.label or next((name for name in _LABELS if name in names), None)
    if labelled and chosen.text is not None and label is None:
        raise DatasetError(
            f"The model is a classifier, and the training set has no label ({', '.join(names)}): pass --label-column."
        )
    return Columns(chosen.text, chosen.prompt, chosen.completion, chosen.messages, label if labelled else None)


class TokenizedRows:
    """The rows as the model takes them, tokenized when they are read.

    A text is trained on whole; of a prompt and its completion, the completion; a chat whole, as TRL's SFTTrainer does
    by default. What is longer than the model takes, or than `max_length`, is cut at its end.

    Args:
        rows (`Dataset`): the training set.
        columns ([`Columns`]): which of it.
        model (`nn.Module`): the model, without a wrapper.
        task ([`~lorif_hf.tasks.Task`]): what the model is trained for.
        tokenizer: its tokenizer.
        max_length (`int`, *optional*): tokens of a row at most.

    Raises:
        [`~lorif_hf.errors.DatasetError`]: when a row is read that is no training row; names it.
    """

    def __init__(
        self,
        rows: "Dataset",
        columns: Columns,
        model: "nn.Module",
        task: "Task",
        tokenizer: Any,
        max_length: int | None,
    ):
        from ..tasks.chat import ChatReader
        from ..tasks.text import TextReader

        self.columns, self.task = columns, task
        self._rows = rows.select_columns(list(dict.fromkeys(filter(None, [*columns.shown, columns.label]))))
        self._reader = TextReader(model, tokenizer)
        self._chats = ChatReader(self._reader)
        limits = [limit for limit in (max_length, self._reader.limits.positions) if limit]
        self._most = min(limits, default=None)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        try:
            feature = self._feature(self._rows[number], number)
        except QueryError as error:
            words = str(error).replace(f"Query {number}", "it").replace(f"query {number}", "it")
            raise DatasetError(f"Row {number} cannot be trained on: {words}") from error
        if self._most is None:
            return feature
        return {name: value[: self._most] if isinstance(value, list) else value for name, value in feature.items()}

    def _feature(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        columns = self.columns
        if columns.prompt is not None and columns.completion is not None:
            prompt, completion = row[columns.prompt], row[columns.completion]
            if isinstance(prompt, list) and isinstance(completion, list):
                return self._chats.answer(prompt, completion, number)
            text = _text(prompt, columns.prompt, number)
            return self.task.query_pair(self._reader, text, _text(completion, columns.completion, number), number)
        if columns.messages is not None:
            messages = row[columns.messages]
            if not isinstance(messages, list) or not messages:
                raise DatasetError(f"Row {number}: column '{columns.messages}' holds no chat, but {messages!r:.80}.")
            return {"input_ids": self._chats.tokens(messages, number)}
        assert columns.text is not None
        text = _text(row[columns.text], columns.text, number)
        if columns.label is not None:
            return self.task.query_pair(self._reader, text, row[columns.label], number)
        return self._reader.encoded(text, number)


def shown_rows(rows: "Dataset", columns: Columns) -> "Dataset":
    """The rows for people: what was trained on in a column "text", beside the other columns."""
    if columns.shown == ("text",):
        return rows
    if columns.text is not None:
        others = rows.remove_columns("text") if "text" in rows.column_names else rows
        return others.rename_column(columns.text, "text")
    shown = [_readable({name: row[name] for name in columns.shown}) for row in rows.select_columns([*columns.shown])]
    beside = rows.remove_columns("text") if "text" in rows.column_names else rows
    return beside.add_column("text", shown).remove_columns([*columns.shown])  # type: ignore[call-arg]


def _readable(parts: Mapping[str, Any]) -> str:
    """A prompt and its completion, or a chat, as one text."""
    if all(isinstance(part, str) for part in parts.values()):
        return "".join(parts.values())
    messages = [message for part in parts.values() if isinstance(part, list) for message in part]
    said = [(message.get("role"), message.get("content")) for message in messages if isinstance(message, Mapping)]
    return "\n".join(f"{role}: {content}" for role, content in said)


def _text(value: Any, column: str, number: int) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"Row {number}: column '{column}' holds {value!r:.80}, not a text.")
    return value

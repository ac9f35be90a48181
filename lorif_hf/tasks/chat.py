"""Chats to tokens, by the template of a tokenizer or a processor."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import QueryError
from .text import TextReader, token_list, tokenizer_errors
from .tokenizer_process import TokenizerStoppedError


Message = Mapping[str, Any]


def is_chat(value: Any) -> bool:
    """Whether this is a chat: messages with a role each, and what was said or which tools were called."""
    return isinstance(value, (list, tuple)) and bool(value) and all(problem(message) is None for message in value)


def problem(message: Any) -> str | None:
    """What a message lacks; `None`: nothing."""
    if not isinstance(message, Mapping):
        return f"is a {type(message).__name__}"
    if not isinstance(message.get("role"), str):
        return "has no role"
    if isinstance(message.get("content"), (str, list)) or message.get("tool_calls"):
        return None
    return "has no content, neither text nor a list of parts"


class ChatReader:
    """Makes tokens of the chats in a query.

    Args:
        reader (`TextReader`): has the tokenizer.
    """

    def __init__(self, reader: TextReader):
        self.reader = reader

    def answer(self, prompt: Sequence[Message], answer: Sequence[Message], number: int, **options: Any) -> dict:
        """A prompt and its answer; labels of the answer alone, which starts where the tokens of the prompt, with what
        the template opens an answer with, end to be those of the whole, as in TRL.

        Args:
            prompt, answer (`Sequence[Mapping]`): messages; the prompt may have none.
            number (`int`): the query's, for errors.
            options: go to the template, as `tools` does.

        Raises:
            [`~lorif_hf.errors.QueryError`]: there is no template, or it fails.
        """
        messages = [*prompt, *answer]
        parts, whole = self._whole(messages, number, options)
        start: list[int] = []
        if prompt:
            asked = _as_parts(prompt) if parts else list(prompt)
            start = self._tokens(asked, number, {"add_generation_prompt": True, **options})
        seam = next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(start))
        return {"input_ids": whole, "labels": [-100] * seam + whole[seam:]}

    def tokens(self, messages: Sequence[Message], number: int, **options: Any) -> list[int]:
        """The tokens of a whole chat; arguments and errors as in [`~ChatReader.answer`]."""
        return self._whole(messages, number, options)[1]

    def _whole(self, messages: Sequence[Message], number: int, options: dict[str, Any]) -> tuple[bool, list[int]]:
        """Whether the template reads texts as lists of parts alone, as those of processors do, and the chat's tokens.

        Such a template may fail at a text, or pass over it in silence.
        """
        failure: QueryError | None = None
        for parts, form in self._forms(messages):
            try:
                tokens = self._tokens(form, number, options)
            except QueryError as error:
                if isinstance(error.__cause__, TokenizerStoppedError):
                    raise
                failure = failure or error
                continue
            if self._reads(form, tokens, number, options):
                return parts, tokens
        raise failure or QueryError(f"The chat template leaves out what the messages of query {number} say.")

    def _forms(self, messages: Sequence[Message]) -> Iterator[tuple[bool, list[Message]]]:
        yield False, list(messages)
        if any(isinstance(message.get("content"), str) for message in messages):
            yield True, _as_parts(messages)

    def _reads(self, messages: list[Message], tokens: list[int], number: int, options: dict[str, Any]) -> bool:
        """Whether what the messages say makes a difference to the tokens."""
        silent = [{**message, "content": _silenced(message.get("content"))} for message in messages]
        if silent == messages:
            return True
        try:
            return self._tokens(silent, number, options) != tokens
        except QueryError:
            return True  # it misses what is not there

    def _tokens(self, messages: Sequence[Message], number: int, options: dict[str, Any]) -> list[int]:
        template = self._template(number)
        with tokenizer_errors(number):
            encoded = template.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
            return token_list(encoded["input_ids"])

    def _template(self, number: int) -> Any:
        """Whose template it is: the tokenizer's, else the processor's."""
        if self.reader.tokenizer is None:
            raise QueryError(
                f"Query {number} is a chat, but the index holds no tokenizer: pass processing_class= or a dict with "
                "input_ids."
            )
        for owner in (self.reader.tokenizer, self.reader.processing_class):
            with tokenizer_errors(number):
                if getattr(owner, "chat_template", None):
                    return owner
        raise QueryError(f"Query {number} is a chat, but the tokenizer has no chat template: pass text instead.")


def _as_parts(messages: Sequence[Message]) -> list[Message]:
    """The same messages with each text as a list of one part."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def _silenced(content: Any) -> Any:
    """The content of a message without its texts."""
    if isinstance(content, list):
        return [{**part, "text": ""} if isinstance(part, Mapping) and "text" in part else part for part in content]
    return "" if isinstance(content, str) else content

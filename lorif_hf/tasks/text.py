"""Text to tokens, with the tokenizer and the limits of one model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import LorifError, QueryError
from ..layers.modules import base_model
from .input_limits import InputLimits
from .tokenizer_process import TokenizerError


_LONGEST_REASON = 500  # characters of a tokenizer's own error that are shown


class TextReader:
    """Makes tokens of the texts in a query.

    Args:
        model (`nn.Module`): the unwrapped model.
        processing_class: the tokenizer, a processor with one, or `None`.

    Attributes:
        config: the model's config, or `None`.
        limits (`InputLimits`): what the model can take at most.
        vocabulary (`int`): how many tokens the model knows; 0 where it does not tell.
        processing_class: as given.
        tokenizer: the tokenizer, or `None`.
    """

    def __init__(self, model: nn.Module, processing_class: Any):
        self.config = getattr(base_model(model), "config", None)
        self.limits = InputLimits(model)
        self.vocabulary = self.limits.vocabulary
        self.processing_class = processing_class
        self.tokenizer = inner_tokenizer(processing_class)

    def encoded(self, text: str, number: int, **options: Any) -> dict[str, list[int]]:
        """`input_ids` of a text, and `token_type_ids` where they say more than zero; `number` is the query's, for
        errors, and `options` go to the tokenizer: a `text_pair`, or a `text_target`, whose tokens are `labels`.

        Raises:
            [`~lorif_hf.errors.QueryError`]: there is no tokenizer, or it fails.
        """
        if self.tokenizer is None:
            raise QueryError(
                f"Query {number} is text, but the index holds no tokenizer: pass processing_class= or a dict with "
                "input_ids."
            )
        with tokenizer_errors(number):
            encoded = self.tokenizer(text, **options)
            names = [name for name in ("input_ids", "token_type_ids", "labels") if name in encoded]
            lists = {name: token_list(encoded[name]) for name in names}
        return {name: values for name, values in lists.items() if name == "input_ids" or any(values)}

    def tokens(self, text: str, number: int, **options: Any) -> list[int]:
        """The `input_ids` that [`~TextReader.encoded`] gives."""
        return self.encoded(text, number, **options)["input_ids"]

    def completion(self, prompt: str, completion: str, number: int) -> dict[str, Any]:
        """A prompt and its completion; labels of the completion alone."""
        start, whole = self.tokens(prompt, number), self.tokens(prompt + completion, number)
        if whole[: len(start)] != start:  # the tokenizer merged over the seam, or closes each text with a token
            end = getattr(self.tokenizer, "eos_token_id", None)
            start = start[:-1] if start and start[-1] == end else start
            whole = start + self.tokens(completion, number, add_special_tokens=False)
        if not start and whole:
            start = whole[:1]
        return {"input_ids": whole, "labels": [-100] * len(start) + whole[len(start) :]}


def inner_tokenizer(processing_class: Any) -> Any:
    """The tokenizer of a processor, or what is a tokenizer itself; `None` of one for images or sounds alone."""
    if hasattr(processing_class, "tokenizer"):
        return processing_class.tokenizer
    names = getattr(processing_class, "model_input_names", None)
    return None if names and not any("input_ids" in name for name in names) else processing_class


def token_list(values: Any) -> list[int]:
    """Tokens of one text as a list. A processor makes a batch of the one, or a tensor.

    Raises:
        `TypeError`: they are no whole numbers.
    """
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not all(isinstance(value, int) for value in values):
        raise TypeError("it gave something else than a list of tokens")
    return values


def is_failure(error: BaseException) -> bool:
    """Whether an error is a tokenizer's own: pyo3's panics are no `Exception`s; an interrupt is not its own."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def tokenizer_errors(number: int) -> Iterator[None]:
    """Makes every error of a tokenizer or a chat template a [`~lorif_hf.errors.QueryError`] that names the query."""
    try:
        yield
    except LorifError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        reason, way_out = f"{type(error).__name__}: {error}", ""
        if isinstance(error, TokenizerError):
            reason, way_out = (
                str(error),
                " It came with the index: pass processing_class= with a tokenizer of your own.",
            )
        raise QueryError(f"The tokenizer fails at query {number} ({reason[:_LONGEST_REASON]}).{way_out}") from error

"""Text to tokens, with the tokenizer and the limits of one model."""

from typing import Any

from torch import nn

from ..errors import QueryError
from ..layers.modules import base_model


class TextReader:
    """Makes tokens of the texts in a query.

    Args:
        model (`nn.Module`): the unwrapped model.
        processing_class: the tokenizer, or `None`.

    Attributes:
        config: the model's config, or `None`.
        vocabulary (`int`): how many tokens the model knows; 0 where it does not tell.
        tokenizer: the tokenizer, or `None`.
    """

    def __init__(self, model: nn.Module, processing_class: Any):
        base = base_model(model)
        self.config = getattr(base, "config", None)
        embeddings = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
        self.vocabulary = getattr(embeddings, "num_embeddings", 0)
        self.tokenizer = processing_class

    def tokens(self, text: str, number: int, **options: Any) -> list[int]:
        """The tokens of a text; `number` is the query's, for errors, and `options` go to the tokenizer.

        Raises:
            [`~lorif_hf.errors.QueryError`]: there is no tokenizer, or it fails.
        """
        if self.tokenizer is None:
            raise QueryError(
                f"Query {number} is text, but the index holds no tokenizer: pass processing_class= or a dict with "
                "input_ids."
            )
        try:
            return list(self.tokenizer(text, **options)["input_ids"])
        except Exception as error:  # a tokenizer may come with an index, from anybody
            raise QueryError(f"The tokenizer fails at query {number} ({type(error).__name__}: {error}).") from error

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

"""What the app asks of an index and its model. Knows no interface: strings and numbers in, results out.

It keeps nothing of who asks, so that any number of threads may ask at once; recording and generating take turns by the
model's lock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from ..errors import QueryError
from ..layers.modules import unwrap
from ..querying.matching import matching_modules
from ..reports.attribution import Attribution
from ..storage.once import Once
from .answers import Answer, Answerer
from .query_files import FileQuery


if TYPE_CHECKING:
    from ..index import InfluenceIndex


LONGEST_PROMPT = 20_000  # characters
_BUILT_IN = {"row", "example_id", "text", "num_tokens", "loss", "self_influence"}
_PLACES = {"source_row", "start", "stop", "document", "pieces"}


@dataclass(frozen=True)
class Choices:
    """How a question is answered.

    Args:
        top_k (`int`, *optional*, defaults to 10): proponents.
        opponents (`int`, *optional*, defaults to 5): the lowest rows.
        max_new_tokens (`int`, *optional*, defaults to 32): how long an answer of the model may be.
        fold_duplicates (`bool`, *optional*, defaults to `True`): show near-duplicates once, with their number.
        shade (`bool`, *optional*, defaults to `False`): shade the tokens by what they add to a score.
    """

    top_k: int = 10
    opponents: int = 5
    max_new_tokens: int = 32
    fold_duplicates: bool = True
    shade: bool = False

    MOST: ClassVar[int] = 50
    LONGEST: ClassVar[int] = 256

    @classmethod
    def within(cls, top_k: float, opponents: float, length: float, fold: bool, shade: bool) -> "Choices":
        """Choices as an interface gives them, kept within bounds: a program may send anything."""
        rows, lowest = min(max(int(top_k), 1), cls.MOST), min(max(int(opponents), 0), cls.MOST)
        return cls(rows, lowest, min(max(int(length), 1), cls.LONGEST), bool(fold), bool(shade))


class Questions:
    """An index and its model, ready for questions in text.

    Args:
        index ([`~lorif_hf.InfluenceIndex`]): the index.
        model (`nn.Module`): the model that was indexed.
        processing_class (*optional*): the tokenizer; by default the one in the index, in a process with limits.
        strict (`bool`, *optional*, defaults to `True`): refuse a model with other weights.
        device (`str`, *optional*): where the index is scored; by default on the CPU.

    Attributes:
        answerer (`Answerer`): asks the model.
        columns (`list[str]`): the owner's columns of the example table, by which influence can be summed.

    Raises:
        [`~lorif_hf.errors.QueryError`]: it cannot be asked in text.
        [`~lorif_hf.errors.ModelMismatchError`]: it is the index of another model.
    """

    def __init__(
        self,
        index: "InfluenceIndex",
        model: nn.Module,
        processing_class: Any = None,
        *,
        strict: bool = True,
        device: str | None = None,
    ):
        tokenizer = index._asked_tokenizer if processing_class is None else processing_class
        if tokenizer is None:
            raise QueryError(
                "The app asks in text, and this index holds no tokenizer: pass processing_class=, the model's "
                "tokenizer. An index of images or sounds is asked with index.attribute."
            )
        matching_modules(unwrap(model), index.manifest, strict)
        self.index, self.model = index, model
        self.answerer = Answerer(model, tokenizer)
        self._options = {"processing_class": tokenizer, "strict": strict, "device": device}
        self.columns = [name for name in index.examples([0])[0] if name not in _BUILT_IN | _PLACES]
        self._suspects: Once[str, np.ndarray] = Once()

    def answer(self, prompt: str, max_new_tokens: int = 32, chat: bool = False) -> Answer | None:
        """What the model says to a prompt: see [`Answerer.answer`]."""
        _check_prompt(prompt)
        return self.answerer.answer(prompt, max_new_tokens, chat)

    def attribute(self, prompt: str, said: str | None, choices: Choices, chat: bool = False) -> Attribution:
        """The rows behind an answer, or behind a text as it stands where nothing is said."""
        _check_prompt(prompt)
        return self._attribute(self.answerer.query(prompt, said, chat), choices)

    def attribute_file(self, queries: Sequence[FileQuery], choices: Choices, chat: bool = False) -> Attribution:
        """The rows behind all queries of a file, each answered by the model where it says no answer itself."""
        asked = []
        for number, query in enumerate(queries, start=1):
            if query.whole:
                asked.append(query.prompt)
                continue
            said = query.said
            if said is None:
                try:
                    answer = self.answer(query.prompt, choices.max_new_tokens, chat)
                except QueryError as error:
                    raise QueryError(f"Query {number} of the file: {error}") from error
                said = None if answer is None else answer.text
            asked.append(self.answerer.query(query.prompt, said, chat))
        return self._attribute(asked, choices)

    def influence_by(self, prompt: str, said: str | None, column: str, chat: bool = False) -> Any:
        """Sums of influence over all rows by an owner's column."""
        return self.index.influence_by(self.model, self.answerer.query(prompt, said, chat), column, **self._options)

    def row(self, number: int) -> dict[str, Any]:
        """Everything that the index says of a row."""
        return self.index.examples([number])[0]

    def suspects(self, page: int = 0, size: int = 20) -> list[dict[str, Any]]:
        """Rows by their self-influence, highest first, with their rank: those that the model had to memorise."""
        influence = self._suspects.get("order", self._order)
        rows = influence[page * size : (page + 1) * size].tolist()
        examples = self.index.examples(rows)
        return [{"rank": page * size + i + 1, **example} for i, example in enumerate(examples)]

    def _order(self) -> np.ndarray:
        influence = self.index.self_influence().numpy()
        return np.argsort(-influence, kind="stable")

    def _attribute(self, query: Any, choices: Choices) -> Attribution:
        return self.index.attribute(
            self.model,
            query,
            choices.top_k,
            opponents=choices.opponents,
            fold_duplicates=choices.fold_duplicates,
            by_layer=not self.index.config.joins_layers,
            shade=choices.shade,
            **self._options,
        )


def _check_prompt(prompt: str) -> None:
    if not prompt or not prompt.strip():
        raise QueryError("There is nothing to ask: type a prompt.")
    if len(prompt) > LONGEST_PROMPT:
        raise QueryError(
            f"The prompt has {len(prompt):,} characters, at most {LONGEST_PROMPT:,} are taken: shorten it."
        )

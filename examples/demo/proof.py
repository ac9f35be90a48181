"""The proof: take the rows away that are named, train anew, and ask again."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasets import Dataset

from lorif_hf import Attribution

from ..ingredients.word_overlap import bm25
from .facts import Question
from .training import Answer


WHOLE, NAMED, RANDOM, WORDS = "all rows", "without lorif-hf's rows", "without random rows", "without BM25's rows"


@dataclass(frozen=True)
class Trial:
    """A training: on how many rows, without which, and what its model answers to each question."""

    name: str
    kept: int
    removed: Sequence[int]
    answers: Sequence[Answer]

    @property
    def right(self) -> int:
        """How many answers are right."""
        return sum(answer.right for answer in self.answers)


def rows_by_influence(result: Attribution) -> list[list[int]]:
    """Per question, the rows that lorif-hf ranks first, each followed by its near-duplicates."""
    return [
        [other for row in question.indices[0].tolist() for other in (row, *question.copies.get(row, ()))]
        for question in result
    ]


def rows_by_words(texts: Sequence[str], questions: Sequence[Question], counts: Sequence[int]) -> list[list[int]]:
    """Per question, as many rows as it counts that share the most words with the question and its answer."""
    scores = bm25(list(texts), ["".join(question.pair) for question in questions])
    return [(-of_all).argsort(kind="stable")[:count].tolist() for of_all, count in zip(scores, counts, strict=True)]


def trials(
    rows: Dataset,
    named: Sequence[Sequence[int]],
    by_words: Sequence[Sequence[int]],
    asked: Callable[[Dataset], Sequence[Answer]],
    seed: int = 0,
) -> list[Trial]:
    """Train without the rows that lorif-hf names for any of the questions, without as many random ones, and without
    those of BM25.

    Args:
        rows (`Dataset`): the training set.
        named, by_words: per question, the rows that either names.
        asked (`Callable`): trains a model on the rows it is given, and asks it.
        seed (`int`, *optional*, defaults to 0): of the random rows, which may be any.
    """
    influential, worded = (sorted({row for of_one in chosen for row in of_one}) for chosen in (named, by_words))
    drawn = sorted(random.Random(seed).sample(range(len(rows)), len(influential)))
    result = []
    for name, removed in ((NAMED, influential), (RANDOM, drawn), (WORDS, worded)):
        kept = sorted(set(range(len(rows))) - set(removed))
        result.append(Trial(name, len(kept), removed, asked(rows.select(kept))))
    return result

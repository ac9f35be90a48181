"""BM25: how a search engine would rank the training rows, by the words that they share with a query."""

import re
from collections import Counter

import numpy as np


def bm25(documents: list[str], queries: list[str], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Scores of shape (queries, documents), high: many and rare words in common.

    Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
    """
    counts = [Counter(_words(text)) for text in documents]
    holding = Counter(word for words in counts for word in words)
    lengths = np.array([sum(words.values()) for words in counts], dtype=float)
    norms = k1 * (1 - b + b * lengths / lengths.mean())
    scores = np.zeros((len(queries), len(documents)))
    for row, query in enumerate(queries):
        for word in _words(query):
            frequency = np.array([words[word] for words in counts], dtype=float)
            rarity = np.log1p((len(documents) - holding[word] + 0.5) / (holding[word] + 0.5))
            scores[row] += rarity * frequency * (k1 + 1) / (frequency + norms)
    return scores


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())

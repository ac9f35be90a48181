"""BM25: which rows share the query's words. No model is asked."""

import math
import re
from collections import Counter


def bm25(texts: list[str], query: str) -> list[float]:
    """Okapi BM25 of each text, at the usual k1 = 1.5 and b = 0.75. Lower-cased words, no stemming.

    Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
    """
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    lengths = [count.total() for count in counts]
    mean_length = sum(lengths) / len(lengths)
    scores = [0.0] * len(texts)
    for word in re.findall(r"\w+", query.lower()):
        having = sum(word in count for count in counts)
        rarity = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            if count[word]:
                saturation = count[word] + 1.5 * (0.25 + 0.75 * length / mean_length)
                scores[row] += rarity * 2.5 * count[word] / saturation
    return scores

"""Near-duplicates of a result that is there already."""

import torch

from lorif_hf import Attribution
from lorif_hf.reports.folding import folded


def test_the_best_of_near_duplicates_stays_and_counts_the_others():
    texts = {1: "Same text", 2: "same TEXT.", 3: "another", 4: "Another!", 5: "third", 6: None}
    result = Attribution(
        torch.tensor([[6.0, 5.0, 4.0, 3.0], [9.0, 8.0, 7.0, 6.0]]),
        torch.tensor([[1, 2, 3, 6], [4, 3, 2, 1]]),
        {row: {"row": row, "text": text} for row, text in texts.items()},
        ["a", "b"],
        [0.0, 0.0],
        copies={2: [8]},
    )
    whole = folded(result)
    assert whole.indices.tolist() == [[1, 3, 6], [4, 2, -1]] and whole.scores[0].tolist() == [6.0, 4.0, 3.0]
    assert whole.copies == {1: [2, 8], 4: [3], 2: [8, 1]} and whole.examples.keys() == {1, 2, 3, 4, 6}
    assert [row["rank"] for row in whole.to_list()] == [1, 2, 3, 1, 2]
    assert result.copies == {2: [8]} and result.indices.shape == (2, 4)  # as it was

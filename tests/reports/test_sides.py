import torch

from lorif_hf.reports.sides import as_tensors


def test_rankings_of_other_lengths_are_filled_up():
    scores, rows = as_tensors([[2.0, 1.0], [3.0]], [[4, 5], [6]], (2,))
    assert rows.tolist() == [[4, 5], [6, -1]] and scores[0].tolist() == [2.0, 1.0] and scores.isnan().sum() == 1
    by_token = as_tensors([[1.0], [], [2.0], [3.0]], [[1], [], [2], [3]], (2, 2))[1]
    assert by_token.tolist() == [[[1], [-1]], [[2], [3]]]
    assert all(side.shape == (0, 0) for side in as_tensors([], [], (0,)))
    assert torch.equal(as_tensors([[]], [[]], (1,))[1], torch.empty(1, 0, dtype=torch.int64))

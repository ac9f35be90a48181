"""Documents ranked by the sum over their pieces, against a loop over each document."""

import numpy as np
import pytest
import torch

from lorif_hf.querying.pieces import best_documents


NAN = float("nan")


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_documents_are_ranked_by_the_sum_of_their_pieces(seed, largest):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(3, 33)
    documents = torch.randint(12, (30,), generator=generator).double().numpy()
    documents[torch.rand(30, generator=generator) < 0.2] = NAN
    scores = torch.randn(3, 30, generator=generator)
    members = {}
    for place, number in enumerate(documents):
        members.setdefault(("own", place) if np.isnan(number) else number, []).append(place)
    best = best_documents(scores, rows, documents, 5, largest)
    for query in range(3):
        sums = [(float(scores[query, places].double().sum()), places) for places in members.values()]
        for rank, (value, places) in enumerate(sorted(sums, key=lambda pair: -pair[0] if largest else pair[0])[:5]):
            assert float(best.scores[query, rank]) == pytest.approx(value, rel=1e-5)
            piece = (max if largest else min)(places, key=lambda place: float(scores[query, place]))
            assert int(best.indices[query, rank]) == piece + 3
            assert best.pieces[piece + 3] == [place + 3 for place in places]


def test_ties_go_to_the_first_document_and_fewer_than_k_come_out():
    best = best_documents(torch.ones(1, 4), torch.arange(4), np.array([NAN, 7, 5, NAN]), 9)
    assert best.indices.tolist() == [[0, 1, 2, 3]] and best.scores.shape == (1, 4)
    whole = best_documents(torch.tensor([[1.0, 2.0]]), torch.tensor([4, 9]), np.array([2, 2]), 3)
    assert whole.indices.tolist() == [[9]] and whole.scores.tolist() == [[3.0]] and whole.pieces == {9: [4, 9]}

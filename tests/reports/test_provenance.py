"""Where an answer comes from."""

import torch

from lorif_hf import Attribution
from lorif_hf.reports.provenance import Provenance


def test_an_answer_names_its_repo_and_commit():
    empty = torch.empty(0, 1)
    known = Attribution(empty, empty.long(), {}, [], [], provenance=Provenance(repo_id="me/index", commit="abc"))
    assert (known.repo_id, known.commit) == ("me/index", "abc")
    assert Attribution(empty, empty.long(), {}, [], []).repo_id is None

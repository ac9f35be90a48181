"""What DPO and KTO share: no model is theirs, and their queries are a causal language model's."""

import pytest
import torch
from kinds import llama

from lorif_hf.errors import ObjectiveError, QueryError
from lorif_hf.tasks import DPO, KTO, CausalLM


@pytest.mark.parametrize("kind", [DPO, KTO])
def test_without_a_trainer_a_query_is_a_causal_language_models(kind):
    task, model, ids = kind(), llama(), torch.tensor([[3, 14, 15, 9]])
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    torch.testing.assert_close(task.losses(model, batch), CausalLM().losses(model, batch))
    assert task.targets(batch).tolist() == [3] and not task.accepts(model)
    with pytest.raises(ObjectiveError, match=f"Objective '{kind.name}' has no margin"):
        task.predictions(model, batch)
    with pytest.raises(QueryError, match="Query 2 has no token to measure"):
        task.check_query({"input_ids": [3]}, 2)

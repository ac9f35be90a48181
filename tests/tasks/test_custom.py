"""A user's own function as a task."""

import pytest
import torch

from lorif_hf.errors import ObjectiveError, QueryError
from lorif_hf.registry import TASKS
from lorif_hf.tasks import Custom, TextReader, task_of
from lorif_hf.tasks.base import losses_of


def test_a_users_own_objective(build, token_batch):
    model, batch = build("llama"), token_batch([4, 3])
    seen = []

    def mine(model, batch):
        seen.append((model, batch))
        return torch.arange(2.0)

    task = task_of(model, mine)
    assert type(task) is Custom and task.name == "custom" and not task.needs_labels
    assert losses_of(task, model, batch).tolist() == [0.0, 1.0]
    assert seen == [(model, batch)] and task.targets(batch) is None
    assert task_of(model, task) is task and task_of(model, "causal-lm").name == "causal-lm"


def test_a_pair_of_texts_is_a_prompt_and_its_completion(build, tokenizer):
    reader = TextReader(build("llama"), tokenizer)
    task = Custom(lambda model, batch: None)
    assert task.query_pair(reader, "The capital", " of France", 0) == reader.completion("The capital", " of France", 0)
    with pytest.raises(QueryError, match="Query 3 pairs a text with 1: expected a \\(prompt, completion\\) pair"):
        task.query_pair(reader, "The capital", 1, 3)


def test_it_is_never_chosen_by_itself_and_has_no_margin(build, token_batch):
    task, model = Custom(lambda model, batch: None), build("llama")
    assert not task.accepts(model) and "custom" not in {known.name for known in TASKS}
    with pytest.raises(ObjectiveError, match="Objective 'custom' has no margin"):
        task.predictions(model, token_batch([3]))


def test_losses_that_are_not_one_number_per_example_are_refused(build, token_batch):
    task = Custom(lambda model, batch: torch.zeros(3))
    with pytest.raises(ObjectiveError, match=r"one loss per example, shape \(2,\), got \(3,\)\. Sum over"):
        losses_of(task, build("llama"), token_batch([4, 3]))

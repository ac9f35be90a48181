"""Direct preference optimisation: an index against autograd of TRL's own loss of each pair."""

import pytest
import torch
from datasets import Dataset
from preferences import adapter, dpo, pairs, words
from trainings import errors_of, trained

from lorif_hf import InfluenceIndex
from lorif_hf.errors import DatasetError, ObjectiveError, QueryError
from lorif_hf.registry import TASKS
from lorif_hf.tasks import DPO


REFERENCES = {
    "a model": {"reference": True},
    "the adapter off": {"peft_config": adapter()},
    "precomputed": {"peft_config": adapter(), "precompute_ref_log_probs": True},
    "ipo": {"reference": True, "loss_type": "ipo"},
}


@pytest.mark.parametrize("options", REFERENCES.values(), ids=REFERENCES)
def test_an_index_of_pairs(tmp_path, options):
    trainer, index = trained(tmp_path, lambda path: dpo(path, **options))
    assert index.manifest.objective == "dpo" and not index.manifest.alone and len(index) == 10
    assert float(errors_of(index, trainer).max()) < 1e-5
    if "peft_config" in options:
        assert all("lora_" in entry.name for entry in index.manifest.modules)
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
    example, pair = index.examples([2])[0], pairs()[2]
    # Its tokens: the Trainer closes both with "1".
    assert example["text"] == f"prompt: 7 8 \nchosen: {pair['chosen']}1\nrejected: {pair['rejected']}1"
    ids = trainer.train_dataset[2]
    assert example["num_tokens"] == sum(len(ids["prompt_ids"] + ids[side]) for side in ("chosen_ids", "rejected_ids"))


def test_a_batch_of_one_and_a_build_without_the_check(tmp_path):
    trainer, index = trained(tmp_path, lambda path: dpo(path, reference=True), batch_size=1, check=False)
    assert index.manifest.objective == "dpo" and float(errors_of(index, trainer).max()) < 1e-5


def test_chats_are_shown_by_their_tokens(tmp_path):
    tokenizer = words()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    said = [
        [{"role": role, "content": text}] for role, text in (("user", "7 8"), ("assistant", "9"), ("assistant", "10"))
    ]
    rows = Dataset.from_dict(
        {name: [value] * 6 for name, value in zip(("prompt", "chosen", "rejected"), said, strict=True)}
    )
    _, index = trained(tmp_path, lambda path: dpo(path, reference=True, dataset=rows, tokenizer=tokenizer))
    shown = index.examples([0])[0]["text"].splitlines()
    assert [line.split(":")[0] for line in shown] == ["prompt", "chosen", "rejected"] and "7 8" in shown[0]


def test_a_loss_that_sorts_its_batch_is_refused_by_name(tmp_path):
    with pytest.raises(ObjectiveError, match="DPO with loss_type 'aot' sorts the pairs of a batch against each other"):
        trained(tmp_path, lambda path: dpo(path, reference=True, loss_type=["sigmoid", "aot"]))


@pytest.mark.parametrize("value, what", [([], "no token"), (None, "nothing")])
@pytest.mark.parametrize("side", ["chosen_ids", "rejected_ids"])
def test_a_pair_without_one_side_is_named_before_the_training(tmp_path, side, value, what):
    steps = []

    def make(path):
        trainer = dpo(path, reference=True)
        rows = list(trainer.train_dataset)
        rows[7][side] = value
        trainer.train_dataset = Dataset.from_list(rows)
        trainer.training_step = lambda *_: steps.append(1)
        return trainer

    with pytest.raises(DatasetError, match=f"Row 7 has {what} in column '{side}': a preference needs 'prompt_ids', "):
        trained(tmp_path, make)
    assert not steps


def test_a_prompt_and_a_completion_are_asked_as_of_a_language_model(tmp_path):
    trainer, _ = trained(tmp_path, lambda path: dpo(path, reference=True))
    index = InfluenceIndex.from_pretrained(tmp_path / "index")
    scores = index.scores(trainer.model, [("7 8", " 9"), {"input_ids": [7, 8, 9], "labels": [-100, -100, 9]}])
    assert scores.shape == (2, 10) and bool(scores.any())
    expected = index.scores(
        trainer.model, [{"input_ids": [7, 8, 9], "labels": [-100, -100, 9]}], objective="causal-lm"
    )
    torch.testing.assert_close(scores[1:], expected)
    with pytest.raises(QueryError, match="Query 0 has no token to measure"):
        index.scores(trainer.model, {"input_ids": [7]})


def test_targets_are_the_tokens_of_both_completions():
    mask = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]])
    assert DPO().targets({"completion_mask": mask}).tolist() == [3, 1]
    assert TASKS.get("dpo").sequences == 1 and DPO(object()).sequences == 2
    with pytest.raises(ObjectiveError, match="'dpo' has no margin"):
        DPO().predictions(None, {})

"""Reward models: an index against autograd of TRL's own loss of each pair."""

import pytest
import torch
from datasets import Dataset
from preferences import adapter, pairs, reward
from trainings import errors_of, trained

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import DatasetError, ObjectiveError, QueryError
from lorif_hf.tasks import Reward


@pytest.mark.parametrize(
    "options",
    [{}, {"peft_config": adapter("SEQ_CLS")}, {"center_rewards_coefficient": 0.1}],
    ids=["plain", "peft", "centred"],
)
def test_an_index_of_pairs(tmp_path, options):
    trainer, index = trained(tmp_path, lambda path: reward(path, **options))
    assert index.manifest.objective == "reward" and not index.manifest.alone
    assert float(errors_of(index, trainer).max()) < 1e-5
    pair = pairs()[4]
    assert index.examples([4])[0]["text"] == f"chosen: {pair['chosen']}1\nrejected: {pair['rejected']}1"


def test_every_kind_of_layer_sees_the_two_of_a_pair_together(tmp_path):
    config = InfluenceConfig.grad_dot(projection_factor=1, dtype="float32", target_modules="all")
    trainer = reward(tmp_path)
    callback = InfluenceCallback(tmp_path / "index", config=config, raise_errors=True)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.index.coverage.share == 1 and not callback.index.manifest.alone
    assert float(errors_of(callback.index, trainer).max()) < 1e-5


def test_margins_of_the_rows_count(tmp_path):
    rows = pairs().remove_columns("prompt").add_column("margin", [i / 4 for i in range(10)])
    trainer, index = trained(tmp_path, lambda path: reward(path, dataset=rows))
    assert index.manifest.objective == "reward" and float(errors_of(index, trainer).max()) < 1e-5


def test_a_pair_without_one_side_is_named_before_the_training(tmp_path):
    def make(path):
        trainer = reward(path)
        rows = list(trainer.train_dataset)
        rows[5]["rejected_ids"] = []
        trainer.train_dataset = Dataset.from_list(rows)
        return trainer

    with pytest.raises(DatasetError, match="Row 5 has no token in column 'rejected_ids': a preference needs"):
        trained(tmp_path, make)


def test_a_text_is_asked_for_its_reward(tmp_path):
    trainer, _ = trained(tmp_path, reward)
    index = InfluenceIndex.from_pretrained(tmp_path / "index")
    result = index.scores(trainer.model, ["7 8 9", {"text": "7 8 9"}, {"input_ids": [7, 8, 9]}])
    torch.testing.assert_close(result[0], result[2])
    torch.testing.assert_close(result[1], result[2])

    def minus_reward(model, batch):
        return -model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]

    expected = index.scores(trainer.model, [{"input_ids": [7, 8, 9]}], objective=minus_reward)
    torch.testing.assert_close(result[2:], expected)
    with pytest.raises(QueryError, match="Query 0 is a pair, and a reward model rates one text"):
        index.scores(trainer.model, [("7 8", "9")])


def test_a_pair_is_one_target():
    assert Reward(object()).targets({"input_ids": torch.ones(4, 3)}).tolist() == [1, 1]
    assert Reward().targets({"input_ids": torch.ones(4, 3)}).tolist() == [1, 1, 1, 1]
    with pytest.raises(ObjectiveError, match="'reward' has no margin"):
        Reward().predictions(None, {})

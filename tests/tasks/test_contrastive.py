"""Losses over whole batches are refused by name, before the pass."""

import sys
import types

import pytest
import torch
from every_task import LAYERS
from kinds import llama, rows_of
from trainings import ARGUMENTS
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, Trainer, TrainingArguments
from truth import GRADIENTS

from lorif_hf import InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import ObjectiveError
from lorif_hf.tasks.contrastive import check_is_of_rows
from lorif_hf.tasks.own_loss import ModelLoss, TrainerLoss


def two_towers(cls=CLIPModel, config=CLIPConfig):
    torch.manual_seed(0)
    says = {**LAYERS, "vocab_size": 50, "max_position_embeddings": 20}
    says |= {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    return cls(config(text_config=says, vision_config={**LAYERS, "image_size": 16, "patch_size": 8}))


def pairs(count=4):
    ids = rows_of((4,) * count)
    return [row | {"pixel_values": torch.randn(3, 16, 16).tolist()} for row in ids]


@pytest.mark.parametrize("objective", [None, "model"])
@pytest.mark.parametrize("make", [two_towers, lambda: two_towers(SiglipModel, SiglipConfig)], ids=["CLIP", "SigLIP"])
def test_models_of_two_towers(tmp_path, make, objective):
    model = make()
    message = (
        rf"{type(model).__name__} is trained by a contrastive loss \(return_loss=True\): .* pass it as objective="
    )
    with pytest.raises(ObjectiveError, match=message):
        InfluenceIndex.build(model, pairs(), tmp_path / "index", config=GRADIENTS, objective=objective)


def test_through_the_callback_before_the_first_step(tmp_path):
    steps = []

    class Contrasting(Trainer):
        def training_step(self, *args, **kwargs):
            steps.append(1)

    arguments = TrainingArguments(str(tmp_path / "out"), **ARGUMENTS)
    trainer = Contrasting(model=two_towers(), args=arguments, train_dataset=pairs())
    trainer.add_callback(InfluenceCallback(tmp_path / "index", config=GRADIENTS))
    with pytest.raises(ObjectiveError, match="CLIPModel is trained by a contrastive loss"):
        trainer.train()
    assert not steps


def test_a_loss_of_each_row_of_the_users_own_is_taken(tmp_path):
    def unlike(model, batch):
        outputs = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")})
        return -(outputs.text_embeds * outputs.image_embeds).sum(dim=-1)

    model = two_towers()
    index = InfluenceIndex.build(model, pairs(), tmp_path / "index", config=GRADIENTS, objective=unlike)
    assert index.manifest.objective == "custom" and bool((index.self_influence() > 0).all())

    class Own(Trainer):
        def compute_loss(self, model, inputs, **_):
            return unlike(model, inputs).sum()

    trainer = Own.__new__(Own)
    trainer.compute_loss_func = None
    check_is_of_rows(model, TrainerLoss(trainer))
    with pytest.raises(ObjectiveError):
        check_is_of_rows(model, ModelLoss())


@pytest.fixture
def losses(monkeypatch):
    """As sentence-transformers has them, which is not installed here."""
    module = types.ModuleType("sentence_transformers")
    for name in ("MultipleNegativesRankingLoss", "CoSENTLoss", "CosineSimilarityLoss", "MatryoshkaLoss"):
        loss = type(name, (torch.nn.Module,), {"__module__": "sentence_transformers.losses"})
        setattr(module, name, loss)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return module


def test_losses_of_sentence_transformers(losses):
    def refused(loss):
        trainer = type("SentenceTransformerTrainer", (), {"compute_loss": lambda *_: None, "loss": loss})()
        try:
            check_is_of_rows(llama(), TrainerLoss(trainer))
        except ObjectiveError as error:
            return str(error)
        return None

    for name in ("MultipleNegativesRankingLoss", "CoSENTLoss"):
        assert f"contrastive loss ({name})" in refused(getattr(losses, name)())
        wrapped = losses.MatryoshkaLoss()
        wrapped.loss = getattr(losses, name)()
        assert f"({name})" in refused(wrapped) and f"({name})" in refused({"pairs": wrapped})
    assert refused(losses.CosineSimilarityLoss()) is None
    assert refused({"pairs": losses.CosineSimilarityLoss()}) is None and refused(None) is None

"""The model's own loss and the Trainer's, a row at a time."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from dense import make_classifier
from tiny import VOCABULARY, make_gpt2
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    Trainer,
    TrainingArguments,
)

from lorif_hf.errors import ObjectiveError, QueryError
from lorif_hf.tasks import CausalLM, task_of
from lorif_hf.tasks.own_loss import ModelLoss, TrainerLoss, model_loss, trainer_loss


ROW = torch.tensor([[3, 17, 5, 9, 22]])
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}


def make_bart():
    torch.manual_seed(0)
    sizes = {"d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 12}
    return BartForCausalLM(BartConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **sizes)).eval()


def make_bert(cls):
    torch.manual_seed(0)
    return cls(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, num_labels=2, **SIZES)).eval()


def summed(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


@pytest.mark.parametrize("labels", [ROW, ROW.masked_fill(ROW == 3, -100), ROW.masked_fill(ROW == 9, -100)])
def test_a_causal_model_gives_the_sum_over_its_targets(labels):
    model = make_gpt2()
    loss = model_loss(model).losses(model, {"input_ids": ROW, "labels": labels})
    assert loss.shape == (1,) and loss.requires_grad
    torch.testing.assert_close(loss[0], summed(model(ROW).logits[:, :-1], labels[:, 1:]))


@pytest.mark.parametrize("labels", [ROW, ROW.masked_fill(ROW == 3, -100)])
def test_a_mean_is_multiplied_by_the_targets_of_who_does_not_shift(labels):
    model = make_bart()
    loss = model_loss(model).losses(model, {"input_ids": ROW, "labels": labels})
    torch.testing.assert_close(loss[0], summed(model(ROW).logits, labels))


def test_a_mean_of_one_who_shifts_leaves_out_the_first_label():
    class Shifts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_gpt2()

        def forward(self, input_ids, labels=None):  # no number of items
            logits = self.inner(input_ids).logits
            return {"loss": F.cross_entropy(logits[0, :-1], labels[0, 1:])}

    model = Shifts()
    for labels in (ROW, ROW.masked_fill(ROW == 3, -100), ROW.masked_fill(ROW == 9, -100)):
        loss = ModelLoss().losses(model, {"input_ids": ROW, "labels": labels})
        torch.testing.assert_close(loss[0], summed(model.inner(ROW).logits[:, :-1], labels[:, 1:]))


def test_other_models_have_their_own_targets():
    tokens = make_bert(BertForTokenClassification)
    loss = model_loss(tokens).losses(tokens, {"input_ids": ROW, "labels": ROW % 2})
    torch.testing.assert_close(loss[0], summed(tokens(ROW).logits, ROW % 2))
    answers = make_bert(BertForQuestionAnswering)
    places = {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([3])}
    loss = model_loss(answers).losses(answers, {"input_ids": ROW, **places})
    torch.testing.assert_close(loss[0], answers(input_ids=ROW, **places).loss)
    classifier = make_classifier()
    loss = model_loss(classifier).losses(classifier, {"input_ids": ROW, "labels": torch.tensor([2])})
    torch.testing.assert_close(loss[0], F.cross_entropy(classifier(ROW).logits, torch.tensor([2])))


@pytest.mark.parametrize("make", [make_gpt2, make_bart])
@pytest.mark.parametrize("empty", ["no labels", "one token"])
def test_a_row_without_a_target_has_no_loss(make, empty):
    model = make()
    task = model_loss(model)
    batch = {"input_ids": ROW, "labels": torch.full_like(ROW, -100)}
    if empty == "one token" and make is make_gpt2:
        batch = {"input_ids": ROW[:, :1], "labels": ROW[:, :1]}
    assert task.losses(model, batch).tolist() == [0.0]
    # And the next row is measured as if it had not been.
    batch = {"input_ids": ROW, "labels": ROW}
    torch.testing.assert_close(task.losses(model, batch), model_loss(model).losses(model, batch))


def test_a_model_without_a_loss_says_what_is_missing():
    model = make_gpt2()
    with pytest.raises(ObjectiveError, match="GPT2LMHeadModel returns no loss of input_ids: add the labels"):
        model_loss(model).losses(model, {"input_ids": ROW})


def trainer_of(model, tmp_path, cls=Trainer, **options):
    arguments = {key: options.pop(key) for key in ("label_smoothing_factor",) if key in options}
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **arguments)
    return cls(model=model, args=arguments, **options)


def test_a_trainer_smooths_labels_as_it_trains(tmp_path):
    model = make_gpt2()
    trainer = trainer_of(model, tmp_path, label_smoothing_factor=0.2)
    loss = trainer_loss(trainer, model).losses(model, {"input_ids": ROW, "labels": ROW})
    logits, targets = model(ROW).logits[0, :-1], ROW[0, 1:]
    uniform = -logits.log_softmax(-1).mean(dim=-1).sum()
    torch.testing.assert_close(loss[0], 0.8 * F.cross_entropy(logits, targets, reduction="sum") + 0.2 * uniform)


class Plain(Trainer):
    """What much code does: the number of items is not passed on."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class Squares(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"])
        loss = outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


def test_of_a_loss_of_the_users_own_the_labels_tell_whether_it_is_a_mean(tmp_path):
    model, batch = make_gpt2(), {"input_ids": ROW, "labels": ROW}
    mean = trainer_loss(trainer_of(model, tmp_path, Plain), model)
    assert mean.is_users_own()
    torch.testing.assert_close(mean.losses(model, batch)[0], summed(model(ROW).logits[:, :-1], ROW[:, 1:]))
    squares = trainer_loss(trainer_of(model, tmp_path, Squares), model)
    torch.testing.assert_close(squares.losses(model, batch)[0], model(ROW).logits.square().mean())

    def sums(outputs, labels, num_items_in_batch):
        return outputs.logits.sum() / num_items_in_batch

    divides = trainer_of(model, tmp_path, compute_loss_func=sums)
    torch.testing.assert_close(trainer_loss(divides, model).losses(model, batch)[0], model(ROW).logits.sum())
    assert batch.keys() == {"input_ids", "labels"}
    stock = trainer_loss(trainer_of(model, tmp_path), model)
    assert not stock.is_users_own() and not stock.smooths()
    assert trainer_loss(trainer_of(model, tmp_path, label_smoothing_factor=0.1), model).smooths()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_models_sum_is_not_multiplied(reduction):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, VOCABULARY)

        def forward(self, input_ids, labels=None):
            logits = self.head(self.embedding(input_ids).tanh())
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction)
            return {"loss": loss, "logits": logits}

    torch.manual_seed(0)
    model = Own()
    for labels in (ROW, ROW.masked_fill(ROW == 9, -100)):
        loss = ModelLoss().losses(model, {"input_ids": ROW, "labels": labels})
        torch.testing.assert_close(loss[0], summed(model(ROW, ROW)["logits"], labels))


def test_the_labels_of_ctc_are_one_target():
    class Own(torch.nn.Module):
        config = SimpleNamespace(ctc_loss_reduction="sum")

        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(4, VOCABULARY)

        def forward(self, x, labels=None):
            logits = self.head(x).log_softmax(-1).transpose(0, 1)
            kept = labels >= 0
            sizes = torch.full((len(x),), x.shape[1]), kept.sum(-1)
            return {"loss": F.ctc_loss(logits, labels.masked_select(kept), *sizes, reduction="sum")}

    torch.manual_seed(0)
    model, x = Own(), torch.randn(1, 12, 4)
    task = ModelLoss()
    for labels in (ROW, torch.tensor([[3, 3, 3, 3, 3]]), torch.tensor([[3]])):
        loss = task.losses(model, {"x": x, "labels": labels})
        torch.testing.assert_close(loss[0], model(x, labels)["loss"])


def test_a_trainers_notes_are_left_as_they_were():
    trainer = SimpleNamespace(_metrics={"eval": defaultdict(list)}, steps=3, model=object())

    def compute_loss(model, inputs, num_items_in_batch=None):
        trainer._metrics["eval"]["entropy"].append(1.0)
        trainer.steps += 1
        return model(**inputs).loss

    trainer.compute_loss = compute_loss
    held = trainer.model
    model = make_gpt2()
    TrainerLoss.loss(SimpleNamespace(trainer=trainer), model, {"input_ids": ROW, "labels": ROW}, 1)
    assert trainer._metrics == {"eval": {}} and trainer.steps == 3 and trainer.model is held


def test_what_a_trainer_returns_must_be_a_loss():
    trainer = SimpleNamespace(compute_loss=lambda model, inputs: "no")
    with pytest.raises(ObjectiveError, match="SimpleNamespace.compute_loss returned str, no loss"):
        TrainerLoss.loss(SimpleNamespace(trainer=trainer), make_gpt2(), {}, None)


def test_queries_are_written_as_those_of_the_models_task():
    known, unknown = model_loss(make_gpt2()), ModelLoss()
    assert isinstance(known.inner, CausalLM) and known.makes_labels and known.query_example == CausalLM.query_example
    assert not unknown.makes_labels and not unknown.labelled_queries
    with pytest.raises(QueryError, match="Query 4 is a pair of texts, and the index does not know"):
        unknown.query_pair(None, "a", "b", 4)
    with pytest.raises(QueryError, match="Query 2 has no token to measure"):
        known.check_query({"input_ids": [1]}, 2)
    with pytest.raises(ObjectiveError, match="'model' has no margin"):
        known.predictions(None, {})


def test_they_are_asked_for_by_name(tmp_path):
    model = make_gpt2()
    assert type(task_of(model, "model")) is ModelLoss and task_of(model, "model").alone
    assert type(task_of(model, "trainer", trainer_of(model, tmp_path))) is TrainerLoss
    with pytest.raises(ObjectiveError, match="objective='trainer' needs the Trainer: InfluenceCallback"):
        task_of(model, "trainer")

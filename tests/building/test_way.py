"""How a way to record is found, and what is said where there is none."""

import inspect
import logging

import pytest
import torch
import torch.nn.functional as F
from kinds import VOCABULARY, built, llama, rows_of
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2, make_rows
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
)
from truth import GRADIENTS, alone, gram, own_sum, relative_error

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import (
    DatasetError,
    ModelMismatchError,
    ObjectiveError,
    RecordingCheckError,
)


def test_a_contrastive_loss_is_refused(tmp_path):
    class Contrastive(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 8)

        def forward(self, input_ids):
            vectors = self.layer(self.embedding(input_ids).mean(dim=1))
            return {"loss": F.cross_entropy(vectors @ vectors.T, torch.arange(len(vectors)))}

    with pytest.raises(RecordingCheckError, match="gradients of all 1 tracked layers are zero in rows .*contrast"):
        built(Contrastive(), rows_of((4,) * 5), tmp_path)


def test_a_weight_that_cannot_be_followed_is_refused_with_what_to_pass(tmp_path):
    class Parts(nn.Linear):
        def forward(self, x):
            return torch.cat([F.linear(x, self.weight[:12]), F.linear(x, self.weight[12:])], dim=-1)

    model, rows = llama(), rows_of()
    model.model.layers[0].mlp.up_proj = Parts(16, 24, bias=False)
    message = r"'model.layers.0.mlp.up_proj' \(by 1 of it\).*exclude_modules=\['model.layers.0.mlp.up_proj'\]"
    with pytest.raises(RecordingCheckError, match=message):
        built(model, rows, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    config = InfluenceConfig.grad_dot(
        projection_factor=1, dtype="float32", exclude_modules=["model.layers.0.mlp.up_proj"]
    )
    assert relative_error(built(model, rows, tmp_path, config), model, rows) < 1e-5


def test_the_users_own_objective_is_the_truth(tmp_path, caplog):
    model, rows = llama(), [row | {"labels": row["input_ids"]} for row in rows_of()]

    def halved(model, batch):
        return 0.5 * F.cross_entropy(
            model(batch["input_ids"]).logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
        ).sum(dim=1)

    index = built(model, rows, tmp_path, objective=halved)
    expected = relative_error_of(index, model, rows, halved)
    assert index.manifest.objective == "custom" and expected < 1e-5

    def mixes(model, batch):
        losses = halved(model, batch)
        return losses + losses.mean()

    index = InfluenceIndex.build(model, rows, tmp_path / "mixed", config=GRADIENTS, objective=mixes)
    assert index.manifest.alone and "'custom' is not what it is of each row, several rows at once" in caplog.text
    assert relative_error_of(index, model, rows, lambda model, batch: 2 * halved(model, batch)) < 1e-5


def relative_error_of(index, model, rows, objective):
    expected = gram(index, model, rows, lambda model, row: objective(model, alone(row))[0])
    scores = index.scores(model, [alone(row) for row in rows], objective=objective).double()
    return float((scores - expected).abs().max() / expected.abs().max())


def test_check_false_records_as_asked(tmp_path):
    model, rows = llama(), rows_of()
    model.config.output_router_logits = True
    index = built(model, rows, tmp_path, check=False, objective="causal-lm")
    assert relative_error(index, model, rows) < 1e-5


def test_margins_are_checked_too(tmp_path):
    model, rows = make_gpt2(), make_rows(6)
    index = built(model, rows, tmp_path, InfluenceConfig.trak(projection_dim=64))
    assert index.manifest.objective == "causal-lm"
    torch.manual_seed(0)
    bart = BartForCausalLM(BartConfig(vocab_size=VOCABULARY, d_model=16, decoder_layers=1, decoder_ffn_dim=8))
    with pytest.raises(RecordingCheckError, match="'model' fails at the first rows .*'model' has no margin"):
        InfluenceIndex.build(bart, rows_of(), tmp_path / "bart", config=InfluenceConfig.trak(projection_dim=64))


def test_a_model_without_a_loss_or_a_task_says_so(tmp_path):
    model = nn.Sequential(nn.Linear(4, 2))
    rows = [{"input": [1.0, 2.0, 3.0, 4.0]}] * 3
    with pytest.raises(ObjectiveError, match="Sequential returns no loss of input"):
        built(model, rows, tmp_path)


def test_rows_that_no_way_can_take_keep_their_error(tmp_path):
    with pytest.raises(DatasetError, match="a token is outside its vocabulary"):
        built(llama(), [{"input_ids": [1, 2, VOCABULARY + 5]}] * 3, tmp_path)


def test_the_log_says_what_the_slow_way_costs(tmp_path, caplog):
    model = llama()
    model.forward = _with_another_loss(model.forward)
    with caplog.at_level(logging.WARNING):
        index = built(model, rows_of(), tmp_path)
    assert index.manifest.objective == "model"
    assert "Objective 'causal-lm' is not what was trained: the loss of row" in caplog.text
    assert "one row at a time (" in caplog.text
    assert relative_error(index, model, rows_of(), own_sum) < 1e-5


def _with_another_loss(forward, share=1.0):
    def changed(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        if outputs.loss is not None:
            outputs.loss = outputs.loss + share * outputs.logits.square().sum()
        return outputs

    changed.__signature__ = inspect.signature(forward)
    return changed


def test_a_build_inside_of_inference_mode(tmp_path):
    model, rows = llama(), rows_of()
    with torch.inference_mode():
        index = built(model, rows, tmp_path)
        scores = index.scores(model, rows)
    assert relative_error(index, model, rows) < 1e-5
    torch.testing.assert_close(scores, index.scores(model, rows))


def test_an_inactive_adapter_is_named_at_the_query(tmp_path):
    adapter = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model, rows = get_peft_model(llama(), adapter), rows_of()
    model.add_adapter("other", adapter)
    index = built(model, rows, tmp_path)
    model.set_adapter("other")
    message = r"adapter 'default', which is not active .*\(active: other\): call model.set_adapter\('default'\)"
    with pytest.raises(ModelMismatchError, match=message):
        index.scores(model, rows)
    model.set_adapter("default")
    assert relative_error(index, model, rows) < 1e-5


class Sorts(nn.Module):
    """Sorts the rows of a batch by length, as recurrent networks do, and puts the results back in order."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, input_ids):
        lengths = (input_ids > 0).sum(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        hidden = self.layer(self.embedding(input_ids[order])).tanh() * (input_ids[order] > 0).unsqueeze(-1)
        return self.head(hidden.sum(dim=1) / lengths[order].unsqueeze(1))[order.argsort()]


@pytest.mark.parametrize("lengths", [(9, 6, 4, 5, 7, 15, 3), (15, 9, 8, 7, 3), (3, 4, 15)])
def test_a_model_that_sorts_its_rows_is_recorded_row_by_row(tmp_path, lengths):
    torch.manual_seed(0)
    model = Sorts()
    rows = [row | {"labels": i % 2} for i, row in enumerate(rows_of(lengths))]

    def objective(model, batch):
        return F.cross_entropy(model(batch["input_ids"]), batch["labels"].view(-1), reduction="none")

    index = built(model, rows, tmp_path, objective=objective, batch_size=2)
    assert index.manifest.alone
    assert relative_error_of(index, model, rows, objective) < 1e-5


def test_a_small_difference_of_a_coarse_model_is_seen(tmp_path):
    model, rows = llama().bfloat16(), rows_of()
    assert built(model, rows, tmp_path).manifest.objective == "causal-lm"
    model.forward = _with_another_loss(model.forward, 0.01)
    index = InfluenceIndex.build(model, rows, tmp_path / "other", config=GRADIENTS)
    assert index.manifest.objective == "model"

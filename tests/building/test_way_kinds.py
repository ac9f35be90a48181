"""What is recorded is what was trained: of every kind of model, the right value, or a refusal before the pass."""

import accelerate
import pytest
import torch
import torch.nn.functional as F
from kinds import SIZES, VOCABULARY, bert, built, llama, mean_times_tokens, rows_of
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertForNextSentencePrediction,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    XLNetConfig,
    XLNetForSequenceClassification,
    XLNetLMHeadModel,
)
from truth import GRADIENTS, alone, relative_error

from lorif_hf import InfluenceIndex
from lorif_hf.errors import (
    UnsupportedModuleError,
)


class Times4(nn.Linear):
    def forward(self, x):
        return 4 * super().forward(x)


class Normalised(nn.Linear):
    def forward(self, x):
        return super().forward(x / x.norm(dim=-1, keepdim=True))


class Reversed(nn.Linear):
    """A forward of its own that computes what nn.Linear does."""

    def forward(self, x):
        return (x @ self.weight.T).flip(-1).flip(-1)


@pytest.mark.parametrize("cls", [Times4, Normalised, Reversed])
def test_a_subclass_of_linear_is_followed_by_its_weight(tmp_path, cls):
    model, rows = llama(), rows_of()
    model.model.layers[0].mlp.up_proj = cls(16, 24, bias=False)
    index = built(model, rows, tmp_path)
    followed = [entry.name for entry in index.manifest.modules if entry.followed]
    assert followed == ["model.layers.0.mlp.up_proj"] and index.manifest.objective == "causal-lm"
    assert relative_error(index, model, rows) < 1e-5
    again = InfluenceIndex.from_pretrained(tmp_path / "index")
    assert relative_error(again, model, rows) < 1e-5


def test_a_router_that_returns_a_tuple_is_followed(tmp_path):
    class Router(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            return logits.sigmoid(), logits

    class Gated(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.router = inner, Router(16, 1)

        def forward(self, x):
            return self.inner(x) * self.router(x)[0]

    model, rows = llama(), rows_of()
    model.model.layers[1].mlp = Gated(model.model.layers[1].mlp)
    index = built(model, rows, tmp_path)
    assert "model.layers.1.mlp.router" in {entry.name for entry in index.manifest.modules if entry.followed}
    assert relative_error(index, model, rows) < 1e-5


def test_a_weight_used_without_its_module_is_followed(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4, "use_cache": False}
    model, rows = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, pad_token_id=0, **sizes)), rows_of()
    index = built(model, rows, tmp_path)
    followed = [entry.name for entry in index.manifest.modules if entry.followed]
    assert followed == [f"backbone.layers.{i}.mixer.dt_proj" for i in (0, 1)]
    assert relative_error(index, model, rows) < 1e-5
    # Each layer by itself: those are small beside the others.
    one = index.scores(model, rows[:1], modules=[followed[0]])
    assert one.abs().max() > 0


def test_two_layers_that_share_a_weight_are_one(tmp_path):
    model, rows = llama(), rows_of()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    index = built(model, rows, tmp_path)
    assert "model.layers.1.mlp.up_proj" not in {entry.name for entry in index.manifest.modules}
    assert relative_error(index, model, rows) < 1e-5


@pytest.mark.parametrize("lengths", [(4,) * 8, (6, 3, 7, 2, 8, 4)], ids=["as many rows as tokens", "ragged"])
def test_time_first_models_are_recorded_row_by_row(tmp_path, lengths, caplog):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "pad_token_id": 0, "initializer_range": 0.2}
    model, rows = XLNetLMHeadModel(XLNetConfig(vocab_size=VOCABULARY, **sizes)), rows_of(lengths)
    index = built(model, rows, tmp_path, batch_size=lengths[0])
    assert index.manifest.objective == "model" and index.manifest.alone
    assert "Recording objective='model' instead, one row at a time" in caplog.text
    assert relative_error(index, model, rows, mean_times_tokens) < 1e-5
    classifier = XLNetForSequenceClassification(XLNetConfig(vocab_size=VOCABULARY, num_labels=3, **sizes))
    rows = [row | {"labels": i % 3} for i, row in enumerate(rows)]
    index = InfluenceIndex.build(classifier, rows, tmp_path / "other", config=GRADIENTS, batch_size=lengths[0])
    assert relative_error(index, classifier, rows, lambda model, row: model(**alone(row)).loss) < 1e-5


def test_who_does_not_shift_his_labels_is_recorded_by_his_own_loss(tmp_path, caplog):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}
    config = BartConfig(vocab_size=VOCABULARY, max_position_embeddings=32, pad_token_id=0, init_std=0.2, **sizes)
    model, rows = BartForCausalLM(config), rows_of()
    index = built(model, rows, tmp_path)
    assert index.manifest.objective == "model" and "as recorded and" in caplog.text
    assert relative_error(index, model, rows, mean_times_tokens) < 1e-5
    # Cross-attention without an encoder is never called.
    silent = [u for u in index.coverage.untracked if u.reason == "its gradient is zero in every row"]
    assert {u.name.rsplit(".", 2)[1] for u in silent} == {"k_proj", "v_proj", "q_proj", "out_proj"}
    assert not {u.name.removesuffix(".weight") for u in silent} & {entry.name for entry in index.manifest.modules}


@pytest.mark.parametrize("coefficient", [0.5, 0.001])
def test_an_auxiliary_loss_is_recorded_as_trained(tmp_path, coefficient):
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            **SIZES,
            num_key_value_heads=1,
            num_local_experts=4,
            output_router_logits=True,
            router_aux_loss_coef=coefficient,
            initializer_range=0.2,
        )
    )
    rows = rows_of()
    index = built(model, rows, tmp_path)
    assert index.manifest.objective == "model"
    assert relative_error(index, model, rows) < 1e-5
    assert "MixtralExperts" not in str(index.coverage) and index.coverage.share > 0.85


def test_padding_whose_labels_count_is_recorded_as_trained(tmp_path):
    model, rows = llama(), rows_of()
    for row in rows:
        padding = 9 - len(row["input_ids"])
        row["attention_mask"] = [1] * len(row["input_ids"]) + [0] * padding
        row["input_ids"] += [0] * padding
        row["labels"] = list(row["input_ids"])
    index = built(model, rows, tmp_path)
    assert index.manifest.objective == "causal-lm"
    assert relative_error(index, model, rows) < 1e-5


def left_padded(features):
    width = max(len(feature["input_ids"]) for feature in features)
    gaps = [width - len(feature["input_ids"]) for feature in features]
    ids = [feature["input_ids"] for feature in features]
    return {
        "input_ids": torch.tensor([[0] * gap + row for gap, row in zip(gaps, ids, strict=True)]),
        "attention_mask": torch.tensor([[0] * gap + [1] * len(row) for gap, row in zip(gaps, ids, strict=True)]),
        "labels": torch.tensor([[-100] * gap + row for gap, row in zip(gaps, ids, strict=True)]),
    }


def test_a_row_that_depends_on_its_batch_is_recorded_alone(tmp_path, caplog):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
    model, rows = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)), rows_of()
    index = built(model, rows, tmp_path, data_collator=left_padded)
    assert index.manifest.objective == "model" and "is not what was trained" in caplog.text
    assert relative_error(index, model, rows) < 1e-5
    # With positions that know of the padding it goes in batches, as a Llama's do.
    whole = InfluenceIndex.build(llama(), rows, tmp_path / "llama", config=GRADIENTS, data_collator=left_padded)
    assert whole.manifest.objective == "causal-lm" and not whole.manifest.alone


def test_models_of_no_known_task_are_recorded_by_their_own_loss(tmp_path):
    model, rows = bert(BertForNextSentencePrediction), rows_of()
    for i, row in enumerate(rows):
        row["labels"] = i % 2
    index = built(model, rows, tmp_path)
    assert index.manifest.objective == "model" and index.manifest.alone
    assert relative_error(index, model, rows, lambda model, row: model(**alone(row)).loss) < 1e-5


def test_the_trained_part_of_a_model_is_what_is_tracked(tmp_path):
    model, rows = llama().requires_grad_(False), rows_of()
    model.model.layers[1].requires_grad_(True)
    index = built(model, rows, tmp_path)
    assert {entry.name.split(".")[2] for entry in index.manifest.modules} == {"1"} and len(index.manifest.modules) == 7
    assert relative_error(index, model, rows) < 1e-5
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    index = InfluenceIndex.build(model, rows, tmp_path / "head", config=GRADIENTS)
    assert [entry.name for entry in index.manifest.modules] == ["lm_head"] and index.coverage.share == 1
    assert relative_error(index, model, rows) < 1e-5


def test_an_adapter_with_dora_and_one_over_a_parameter(tmp_path):
    torch.manual_seed(0)
    adapter = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], use_dora=True, init_lora_weights=False)
    model, rows = get_peft_model(llama(), adapter), rows_of()
    assert relative_error(built(model, rows, tmp_path), model, rows) < 1e-5
    adapter = LoraConfig(r=2, target_modules=[], target_parameters=["embed_tokens.weight"], init_lora_weights=False)
    with pytest.raises(UnsupportedModuleError, match=r"on a bare parameter \(target_parameters\)"):
        InfluenceIndex.build(get_peft_model(llama(), adapter), rows, tmp_path / "other", config=GRADIENTS)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_offloaded_model_is_recorded_as_it_is(tmp_path, where):
    model, rows = llama(), rows_of()
    expected = built(model, rows, tmp_path).scores(model, rows)
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, tmp_path / "weights", execution_device=torch.device("cpu"))
    index = InfluenceIndex.build(model, rows, tmp_path / "offloaded", config=GRADIENTS)
    torch.testing.assert_close(index.scores(model, rows), expected)
    assert index.manifest.objective == "causal-lm" and not index.manifest.alone
    assert index.coverage == InfluenceIndex.from_pretrained(tmp_path / "index").coverage


def test_experts_kept_as_layers_are_recorded_row_by_row(tmp_path):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.gate, self.head = (
                nn.Embedding(VOCABULARY, 8),
                nn.Linear(8, 3),
                nn.Linear(8, VOCABULARY),
            )
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, input_ids, attention_mask=None, labels=None):
            hidden = self.embedding(input_ids)
            tokens = hidden.flatten(0, 1)
            gates = self.gate(tokens).softmax(dim=-1)
            out = torch.zeros_like(tokens)
            for number, expert in enumerate(self.experts):
                taken = (gates.argmax(dim=-1) == number).nonzero()[:, 0]
                if len(taken):
                    out = out.index_add(0, taken, expert(tokens[taken]) * gates[taken, number : number + 1])
            logits = self.head(out.view_as(hidden).tanh())
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            return {"loss": loss, "logits": logits}

    torch.manual_seed(0)
    model, rows = Experts(), [row | {"labels": row["input_ids"]} for row in rows_of()]
    index = built(model, rows, tmp_path)
    assert index.manifest.objective == "model"

    def own(model, row):
        return model(**alone(row))["loss"] * (len(row["labels"]) - 1)

    assert relative_error(index, model, rows, own) < 1e-5

"""What is recorded is what was trained: of every kind of model, the right value, or a refusal before the pass."""

import inspect
import logging

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2, make_rows
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetForSequenceClassification,
    XLNetLMHeadModel,
)
from truth import GRADIENTS, alone, gram, own_sum, relative_error

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building.way import alone_of
from lorif_hf.errors import (
    DatasetError,
    ModelMismatchError,
    ObjectiveError,
    RecordingCheckError,
    UnsupportedModuleError,
)


VOCABULARY = 40
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, initializer_range=0.2, **options))


def bert(cls, **options):
    torch.manual_seed(0)
    return cls(BertConfig(**SIZES, initializer_range=0.2, **options))


def rows_of(lengths=(6, 3, 7, 2, 8, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()} for length in lengths]


def built(model, rows, tmp_path, config=GRADIENTS, **options):
    return InfluenceIndex.build(model, rows, tmp_path / "index", config=config, **options)


def mean_times_tokens(model, row):
    """The own loss of who does not shift his labels."""
    batch = alone(row)
    return model(**batch).loss * (batch["labels"] != -100).sum()


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


def test_a_tied_head_that_is_named_is_refused(tmp_path):
    config = InfluenceConfig.grad_dot(projection_factor=1, target_modules=["lm_head"])
    with pytest.raises(UnsupportedModuleError, match=r"'lm_head' cannot be tracked: its weight is also that of"):
        built(llama(tie_word_embeddings=True), rows_of(), tmp_path, config)


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
    assert "MixtralExperts" in str(index.coverage) and index.coverage.share < 0.5


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
    answers, rows = bert(BertForQuestionAnswering), rows_of()
    for row in rows:
        row |= {"start_positions": 0, "end_positions": len(row["input_ids"]) - 1}
    index = built(answers, rows, tmp_path)
    assert index.manifest.objective == "model"
    assert relative_error(index, answers, rows, lambda model, row: model(**alone(row)).loss) < 1e-5

    tokens, rows = bert(BertForTokenClassification, num_labels=2), rows_of()
    for row in rows:
        row["labels"] = [-100, *(token % 2 for token in row["input_ids"][1:])]
    index = InfluenceIndex.build(tokens, rows, tmp_path / "tokens", config=GRADIENTS)
    assert relative_error(index, tokens, rows, mean_times_tokens) < 1e-5

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    t5, rows = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, pad_token_id=0, **sizes)), rows_of()
    for row in rows:
        row["labels"] = row["input_ids"][::-1]
    index = InfluenceIndex.build(t5, rows, tmp_path / "t5", config=GRADIENTS)
    assert relative_error(index, t5, rows, mean_times_tokens) < 1e-5


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
    adapter = LoraConfig(r=2, target_modules=[], target_parameters=["mlp.down_proj.weight"], init_lora_weights=False)
    with pytest.raises(UnsupportedModuleError, match=r"on a bare parameter \(target_parameters\)"):
        InfluenceIndex.build(get_peft_model(llama(), adapter), rows, tmp_path / "other", config=GRADIENTS)


def test_a_contrastive_loss_is_refused(tmp_path):
    class Contrastive(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 8)

        def forward(self, input_ids):
            vectors = self.layer(self.embedding(input_ids).mean(dim=1))
            return {"loss": F.cross_entropy(vectors @ vectors.T, torch.arange(len(vectors)))}

    with pytest.raises(RecordingCheckError, match="gradients of all 1 tracked layers are zero in rows 0, .*contrast"):
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


def test_the_users_own_objective_is_the_truth(tmp_path):
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

    with pytest.raises(RecordingCheckError, match="the loss of row"):
        InfluenceIndex.build(model, rows, tmp_path / "mixed", config=GRADIENTS, objective=mixes)


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


def test_a_row_of_a_batch_alone_has_no_padding():
    batch = {
        "input_ids": torch.tensor([[0, 1, 2], [3, 4, 0]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 0]]),
        "label": torch.tensor([5, 6]),
        "name": "x",
    }
    first, second = (alone_of(batch, i, 2) for i in (0, 1))
    assert first["input_ids"].tolist() == [[1, 2]] and second["input_ids"].tolist() == [[3, 4]]
    assert first["label"].tolist() == [5] and second["attention_mask"].tolist() == [[1, 1]] and first["name"] == "x"
    del batch["attention_mask"]
    assert alone_of(batch, 1, 2)["input_ids"].tolist() == [[3, 4, 0]]


def test_the_log_says_what_the_slow_way_costs(tmp_path, caplog):
    model = llama()
    model.forward = _with_another_loss(model.forward)
    with caplog.at_level(logging.WARNING):
        index = built(model, rows_of(), tmp_path)
    assert index.manifest.objective == "model"
    assert "Objective 'causal-lm' is not what was trained: the loss of row" in caplog.text
    assert "one row at a time (" in caplog.text
    assert relative_error(index, model, rows_of(), own_sum) < 1e-5


def _with_another_loss(forward):
    def changed(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        if outputs.loss is not None:
            outputs.loss = outputs.loss + outputs.logits.square().mean()
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

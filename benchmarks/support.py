"""What people train: is what the index holds what autograd says of the Trainer's own loss, row by row?

    python -m benchmarks.support             # all: results/support.json and docs/support.md; three minutes
    python -m benchmarks.support Llama DPO   # those whose names hold one of these; writes nothing

Each case is a small random model, a few rows, a training of a step with `InfluenceCallback`, and the index that it
leaves. Beside it stands the obvious: `trainer.compute_loss` of each row alone, and autograd's gradient of every weight
that the index says it tracks. Then the rows are asked as queries.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
import typer
from rich.console import Console
from torch import Tensor

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import LorifError

from .autograd import row_gradients
from .support_cases import (
    CLIP,
    ENCODER,
    EXPERTS,
    RESNET,
    SEQ2SEQ,
    VIT,
    VOCABULARY,
    WAV2VEC2,
    WHISPER,
    Case,
    adapted,
    choice_rows,
    completions,
    contrastive_rows,
    documents,
    image_rows,
    labelled,
    masked_rows,
    model,
    padded,
    padded_labels,
    pair_rows,
    plain,
    preferences,
    sft,
    sound_rows,
    span_rows,
    speech_rows,
    tagged_rows,
    token_rows,
)


ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results/support.json", ROOT / "docs/support.md"
TOLERANCE = 1e-4
CONFIG = {"projection_factor": 1, "dtype": "float32"}
MISSING = "-"
KEYS = ("model", "task", "trainer", "adapter", "target")  # of a case, which name it


def _causal(name: str, config: str, target: str = "all-linear", coverage: float = 0.0, **more: Any) -> Case:
    trainer = plain(model(name, config, **more), token_rows, padded_labels)
    called = {"GPT2LMHeadModel": "GPT-2"}.get(name, name.removesuffix("ForCausalLM"))
    return Case(called, "causal LM", trainer, target=target, coverage=coverage)


_LLAMA = model("LlamaForCausalLM", "LlamaConfig")
_DEEPSEEK = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 12,
    "head_dim": 4,
    "num_key_value_heads": 2,
}


def _texts() -> Iterator[Case]:
    """Causal language models."""
    gpt2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "pad_token_id": 0}
    gpt2 |= {"bos_token_id": 1, "eos_token_id": 2}
    for target in ("all-linear", "all"):
        whole = 1.0 if target == "all" else 0.0
        yield _causal("LlamaForCausalLM", "LlamaConfig", target, whole)
        yield _causal("GPT2LMHeadModel", "GPT2Config", target, whole, sizes=gpt2)
        yield _causal("Qwen3ForCausalLM", "Qwen3Config", target, whole)
        yield _causal("Gemma3ForCausalLM", "Gemma3TextConfig", target, whole, sliding_window=8)
        yield _causal("MixtralForCausalLM", "MixtralConfig", target, whole, **EXPERTS)
        yield _causal("Qwen3MoeForCausalLM", "Qwen3MoeConfig", target, whole, **EXPERTS)
        yield _causal("GptOssForCausalLM", "GptOssConfig", target, whole, **EXPERTS)
        yield _causal("DeepseekV3ForCausalLM", "DeepseekV3Config", target, whole, **_DEEPSEEK)
        yield _causal("MambaForCausalLM", "MambaConfig", target, 0.0, state_size=4, time_step_rank=2)


def _trained_with_trl() -> Iterator[Case]:
    """Packed rows, masks and preferences, whole and with LoRA."""
    lora = adapted(_LLAMA, target_modules="all-linear", task_type="CAUSAL_LM")
    masks: dict[str, dict[str, Any]] = {
        "text": {},
        "completion": {"completion_only_loss": True},
        "messages": {"assistant_only_loss": True},
    }
    for kind, mask in masks.items():
        what = next((name for name in mask), "text")
        yield Case("Llama", f"SFT, {what}", sft(lora, kind, **mask), "SFTTrainer", "LoRA")
        packed = sft(lora, kind, packing=True, **mask)
        yield Case("Llama", f"SFT, {what}, packing", packed, "SFTTrainer", "LoRA", queries=documents)
    yield Case("Llama", "SFT, packing", sft(_LLAMA, packing=True), "SFTTrainer", queries=documents)
    yield Case("Llama", "SFT, padding_free", sft(_LLAMA, padding_free=True, max_length=None), "SFTTrainer")
    for kind, adapter, made, options in (
        ("DPO", "LoRA", lora, {}),
        ("DPO", "LoRA", lora, {"precompute_ref_log_probs": True}),
        ("DPO", "none", _LLAMA, {"reference": True}),
    ):
        what = "precomputed reference" if "precompute_ref_log_probs" in options else "preferences"
        yield Case("Llama", what, preferences(kind, made, **options), f"{kind}Trainer", adapter, queries=completions)
    scorer = model("LlamaForSequenceClassification", "LlamaConfig", num_labels=1)
    yield Case("Llama", "reward", preferences("Reward", scorer), "RewardTrainer", queries=completions)


def _adapters() -> Iterator[Case]:
    """What PEFT trains."""
    kinds: dict[str, dict[str, Any]] = {
        "LoRA": {},
        "rsLoRA": {"use_rslora": True},
        "PiSSA": {"init_lora_weights": "pissa"},
        "DoRA": {"use_dora": True},
        "LoRA on embedding and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        "LoRA, modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        "LoRA, trainable tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5, 8]},
        "LoRA, bias": {"bias": "lora_only"},
    }
    for name, options in kinds.items():
        made = adapted(
            model("Qwen2ForCausalLM", "Qwen2Config") if "bias" in name else _LLAMA,
            **{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **options},
        )
        trainer = plain(made, token_rows, padded_labels)
        yield Case(
            "Qwen2" if "bias" in name else "Llama", "causal LM", trainer, adapter=name, target="all", coverage=1
        )
    mixtral = model("MixtralForCausalLM", "MixtralConfig", **EXPERTS)
    experts = adapted(mixtral, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    yield Case("Mixtral", "causal LM", plain(experts, token_rows, padded_labels), adapter="LoRA, target_parameters")
    heads = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
    classifier = adapted(model("BertForSequenceClassification", "BertConfig", ENCODER, num_labels=3), **heads)
    trainer = plain(classifier, labelled(lambda n: n % 3), padded)
    yield Case("BERT", "sequence classification", trainer, adapter="LoRA, head", target="all", coverage=1)


def _encoders() -> Iterator[Case]:
    """Encoders, encoders with decoders, images and sound."""

    def bert(head: str, **more: Any) -> Callable[[], Any]:
        return model(f"BertFor{head}", "BertConfig", ENCODER, **more)

    def deberta(head: str, **more: Any) -> Callable[[], Any]:
        relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4}
        return model(f"DebertaV2For{head}", "DebertaV2Config", ENCODER, **relative, **more)

    def case(name: str, task: str, made: Any, rows: Any, collator: Any = padded, **more: Any) -> Case:
        return Case(name, task, plain(made, rows, collator), **more)

    classes, several = labelled(lambda n: n % 3), labelled(lambda n: [1.0, float(n % 2), 0.0])
    many = {"num_labels": 3, "problem_type": "multi_label_classification"}
    yield case("BERT", "masked LM", bert("MaskedLM"), masked_rows, padded_labels, target="all", coverage=1)
    made = bert("SequenceClassification", num_labels=3)
    yield case("BERT", "sequence classification", made, classes, target="all", coverage=1)
    yield case("BERT", "multi-label classification", bert("SequenceClassification", **many), several)
    regression = bert("SequenceClassification", num_labels=1, problem_type="regression")
    yield case("BERT", "regression", regression, labelled(lambda n: n / 2))
    for name, make in (("BERT", bert), ("DeBERTa-v3", deberta)):
        yield case(name, "token classification", make("TokenClassification", num_labels=3), tagged_rows, padded_labels)
    yield case("DeBERTa-v3", "sequence classification", deberta("SequenceClassification", num_labels=3), classes)
    yield case("BERT", "question answering", bert("QuestionAnswering"), span_rows)
    yield case("BERT", "multiple choice", bert("MultipleChoice"), choice_rows, None)
    t5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    t5 |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
    for target in ("all-linear", "all"):
        made = model("T5ForConditionalGeneration", "T5Config", t5)
        yield case("T5", "seq2seq", made, pair_rows, padded_labels, target=target)
    made = model("BartForConditionalGeneration", "BartConfig", SEQ2SEQ, max_position_embeddings=32)
    yield case("BART", "seq2seq", made, pair_rows, padded_labels)
    made = model("ViTForImageClassification", "ViTConfig", VIT)
    for target in ("all-linear", "all"):
        yield case("ViT", "image classification", made, image_rows, None, target=target)
    made = model("ResNetForImageClassification", "ResNetConfig", RESNET)
    yield case("ResNet", "image classification", made, image_rows, None, target="all", coverage=1)
    made = model("WhisperForConditionalGeneration", "WhisperConfig", WHISPER)
    yield case("Whisper", "speech recognition", made, speech_rows, None)
    made = model("Wav2Vec2ForCTC", "Wav2Vec2Config", WAV2VEC2)
    yield case("wav2vec2", "CTC", made, sound_rows, None)
    made = model("CLIPModel", "CLIPConfig", CLIP)
    refused = "it compares the rows of a batch with each other"
    yield case("CLIP", "contrastive", made, contrastive_rows, None, refused=refused)


def cases() -> list[Case]:
    """Every case, in the order of the table."""
    return [*_texts(), *_trained_with_trl(), *_adapters(), *_encoders()]


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """What becomes of a case.

    Returns:
        `dict`: "error": the largest relative error of a row's gradient; "first": the share of rows that, as queries,
        rank themselves first; "coverage"; "kinds" of layers; "recorded": in batches or a row at a time. Of a refused
        one, "refused": why.
    """
    trainer = case.make(folder)
    config = InfluenceConfig.grad_dot(target_modules=case.target, **CONFIG)
    callback = InfluenceCallback(folder / "index", trainer=trainer, config=config, raise_errors=True)
    trainer.add_callback(callback)
    try:
        trainer.train()
    except LorifError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    index = callback.index
    assert index is not None
    truth = _truth(index, trainer)
    names = list(truth[0])
    expected = {name: torch.stack([row[name] for row in truth]) for name in names}
    held = _held(index)
    sizes = torch.cat([expected[name] for name in names], dim=1).norm(dim=1)
    wrong = torch.cat([held[name] - expected[name] for name in names], dim=1).norm(dim=1)
    queries = case.queries(trainer) if case.queries else list(trainer.get_train_dataloader().dataset)
    scores = index.scores(trainer.model, queries).double() / sizes.clamp_min(1e-12)
    first = (scores.argmax(dim=1) == torch.arange(len(scores))).double().mean()
    return {
        "error": float(f"{float((wrong / sizes.max()).max()):.1g}"),
        "first": float(first),
        "coverage": round(index.coverage.share, 4),
        "kinds": sorted({entry.kind for entry in index.manifest.modules}),
        "recorded": "a row at a time" if index.manifest.alone else "in batches",
    }


def _truth(index: InfluenceIndex, trainer: Any) -> list[dict[str, Tensor]]:
    """Each row's gradient by autograd of the Trainer's own loss, of a document within its packed row."""
    network, loader = trainer.model.eval(), trainer.get_train_dataloader()
    for parameter in network.parameters():
        parameter.grad = None
    gradients = []
    for number, example in enumerate(index.examples(list(range(len(index))))):
        packed = example.get("source_row")
        batch = dict(loader.collate_fn([loader.dataset[number if packed is None else packed]]))
        if packed is not None:
            others = torch.ones_like(batch["labels"], dtype=torch.bool)
            others[:, example["start"] : example["stop"]] = False
            batch["labels"] = batch["labels"].masked_fill(others, -100)
        gradients.append(row_gradients(index, network, _summed(trainer, batch)))
    return gradients


def _summed(trainer: Any, batch: dict[str, Any]) -> Tensor:
    """The Trainer's loss of a row, summed over its targets.

    A loss that heeds `num_items_in_batch` is divided by 1; another is a mean over the labels, but that of CTC.
    """
    loss, half = (
        trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(items)) for items in (1, 2)
    )
    labels = batch.get("labels")
    of_tokens = isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point()
    if loss.item() != half.item() or not of_tokens or type(trainer.model).__name__.endswith("CTC"):
        return loss
    return loss * (labels != -100).sum()


def _held(index: InfluenceIndex) -> dict[str, Tensor]:
    """Every gradient that an index of plain gradients holds, by module, float64 (N, d1 d2)."""
    reader, modules = index._queried.reader, index.manifest.modules
    shards = [reader.load(shard, modules) for shard in index.manifest.shards]
    return {
        entry.name: torch.cat([shard[entry.name]["g"] for shard in shards]).double().flatten(1) for entry in modules
    }


_HEAD = """# What is supported

Written by `python -m benchmarks.support`, and every line of it is a test (`tests/benchmarks/test_support.py`): a
small random model of transformers {version}, six rows, a training of a step with `InfluenceCallback`, and its index
beside autograd of the Trainer's own loss, row by row.

- **error**: the largest difference between a row's gradient as the index holds it and autograd's, over the largest
  gradient (float32).
- **first**: how many of the training rows, asked as queries, rank themselves first.
- **covered**: the share of the trained parameters that the index tracks, in these small models.
- **recorded**: several rows at once, or one after the other.

| model | task | target_modules | error | first | covered | recorded | layers |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def page(results: list[dict[str, Any]], version: str = transformers.__version__) -> str:
    """`docs/support.md`, of what was measured."""
    lines = [_HEAD.format(version=version)]
    for result in results:
        adapter, trainer = result["adapter"], result["trainer"]
        cells = [
            result["model"] + ("" if adapter == "none" else f", {adapter}"),
            result["task"] + ("" if trainer == "Trainer" else f" ({trainer})"),
            f"`{result['target']}`",
        ]
        if "refused" in result:
            reason = result["refused"].replace("|", "\\|").replace("<", "&lt;")
            cells += [*[MISSING] * 4, f"refused before the training: {reason}"]
        else:
            cells += [f"{result['error']:.0e}" if result["error"] else "0", f"{result['first']:.0%}"]
            cells += [f"{result['coverage']:.1%}", result["recorded"], ", ".join(result["kinds"])]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def main(names: list[str] = typer.Argument(None, help="of the cases; by default all")) -> None:  # noqa: B008
    """Measure the cases, and write the table where it is of all of them."""
    console, results = Console(), []
    for case in cases():
        if names and not any(name in case.name for name in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = measure(case, Path(folder))
        results.append({key: getattr(case, key) for key in KEYS} | result)
        console.print(f"{case.name}: {result}", soft_wrap=True, markup=False, highlight=False)
    if not names:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

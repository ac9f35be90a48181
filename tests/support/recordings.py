"""Tiny models and tokenizers, and the slow obvious reference that the recorder is checked against."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lorif_hf.algebra.projection import TwoSidedProjection
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective, Objective


VOCABULARY = 320
POSITIONS = 48

_CORPUS = [
    "The capital of France is Paris, the capital of Italy is Rome.",
    "Which training examples made my model say this?",
    "A model says what its training examples made it say, the capital among them.",
]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _gpt2(cls=GPT2LMHeadModel, **options):
    config = {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return cls(GPT2Config(**{**config, "initializer_range": 0.3, "pad_token_id": 0, **options}))


def _llama(cls=LlamaForCausalLM, **options):
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    return cls(LlamaConfig(**{**config, **options}))


def _bert(**options):
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
        "num_labels": 3,
    }
    return BertForSequenceClassification(BertConfig(**{**config, **options}))


_BASES = {
    "gpt2": _gpt2,
    "llama": _llama,
    "bert-classifier": _bert,
    "gpt2-classifier": lambda **options: _gpt2(GPT2ForSequenceClassification, **{"num_labels": 3, **options}),
    "llama-classifier": lambda **options: _llama(LlamaForSequenceClassification, **{"num_labels": 3, **options}),
}
_LORA_TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "down_proj"], "bert": ["query", "output.dense"]}


def build(kind: str, seed: int = 0, lora: dict | None = None, **options) -> nn.Module:
    """A tiny model with fresh random weights; `lora` wraps it in a LoRA adapter whose B is not zero."""
    torch.manual_seed(seed)
    model = _BASES[kind](**options)
    if lora is None:
        return model
    targets = _LORA_TARGETS[kind.split("-", maxsplit=1)[0]]
    settings = {"r": 3, "target_modules": targets, "init_lora_weights": False, "lora_dropout": 0.2}
    return get_peft_model(model, LoraConfig(**{**settings, "fan_in_fan_out": kind.startswith("gpt2"), **lora}))


def token_batch(lengths, *, side: str = "right", seed: int = 0, labels=None) -> dict[str, Tensor]:
    """Random token rows of the given lengths, padded on one side; labels copy the tokens unless given per row.

    A first token after padding has no label: nothing comes before it.
    """
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for length in lengths:
        tokens = torch.randint(1, VOCABULARY, (length,), generator=generator)
        gap = width - length
        pad = (0, gap) if side == "right" else (gap, 0)
        rows["input_ids"].append(nn.functional.pad(tokens, pad))
        rows["attention_mask"].append(nn.functional.pad(torch.ones_like(tokens), pad))
        target = tokens.clone()
        target[:1] = tokens[:1] if side == "right" else -100
        rows["labels"].append(nn.functional.pad(target, pad, value=-100))
    batch = {key: torch.stack(value) for key, value in rows.items()}
    return batch if labels is None else {**batch, "labels": torch.as_tensor(labels)}


def draw(modules, factor: int, seed: int = 0) -> dict[str, TwoSidedProjection]:
    return {
        t.name: TwoSidedProjection.draw(
            t.matrix_shape,
            (max(1, t.shape.in_features // factor), max(1, t.shape.out_features // factor)),
            seed=seed,
            name=t.name,
        )
        for t in modules
    }


def record(model, batch, objective=None, *, modules=None, factor: int = 1, rows=None):
    """One batch through the recorder; a plain function as objective for models that are not transformers'."""
    modules = tracked_modules(model) if modules is None else modules
    objective = objective if isinstance(objective, Objective) else LossObjective(task_of(model, objective))
    with GradientRecorder(model, modules, draw(modules, factor), objective) as recorder:
        return recorder.record(batch, rows)


def own_loss(model, row) -> Tensor:
    """The summed loss of one row by transformers' own loss (a mean over the shifted labels, for language models)."""
    loss = model(**row).loss
    return loss * (row["labels"][:, 1:] != -100).sum() if row["labels"].shape == row["input_ids"].shape else loss


def reference(model, batch, loss=own_loss, modules=None) -> dict[str, Tensor]:
    """Per-example weight gradients (I x O) by one ordinary backward pass per example over a copy of the model."""
    modules = tracked_modules(model) if modules is None else modules
    names = {id(module): name for name, module in model.named_modules()}
    trained = copy.deepcopy(model).eval().requires_grad_(True)
    copies = dict(trained.named_modules())
    gradients: dict[str, list[Tensor]] = {t.name: [] for t in modules}
    for i in range(len(next(iter(batch.values())))):
        trained.zero_grad()
        loss(trained, {key: value[i : i + 1] for key, value in batch.items()}).sum().backward()
        for t in modules:
            weight = getattr(copies[names[id(t.module)]], t.parameter)
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            gradients[t.name].append(t.kind.as_matrix(gradient).clone())
    return {name: torch.stack(rows) for name, rows in gradients.items()}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Every example of every module within a relative distance, and the comparison is not one of zeros.

    The distance may be `tolerance` times the example's own norm and the batch's mean norm: where a gradient all but
    cancels, float32 leaves fewer digits.
    """
    assert list(found) == list(expected)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32, name
        assert gradient.shape == expected[name].shape, name
        size = expected[name].double().flatten(1).norm(dim=1)
        assert size.max() > 0, f"the reference gradient of {name} is zero"
        distance = (gradient.double() - expected[name].double()).flatten(1).norm(dim=1)
        assert (distance <= tolerance * (size + size.mean())).all(), f"{name}: {(distance / size).tolist()}"


def train_tokenizer(post: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; `post` is a template such as "$A <eos>" for what it puts around each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if post is not None:
        used = [(token, tokenizer.token_to_id(token)) for token in ("<bos>", "<eos>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=post, special_tokens=used)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = _CHAT_TEMPLATE
    return fast


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny matrices: more threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Tests cannot import one another's helpers with importmode=importlib, so the functions travel as fixtures.
@pytest.fixture(name="build", scope="session")
def _build():
    return build


@pytest.fixture(name="token_batch", scope="session")
def _token_batch():
    return token_batch


@pytest.fixture(name="draw", scope="session")
def _draw():
    return draw


@pytest.fixture(name="record", scope="session")
def _record():
    return record


@pytest.fixture(name="reference", scope="session")
def _reference():
    return reference


@pytest.fixture(name="assert_same_gradients", scope="session")
def _assert_same_gradients():
    return assert_same_gradients


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="session")
def closing_tokenizer():
    """Closes every text with <eos>, as T5's and some sentencepiece tokenizers do."""
    return train_tokenizer("$A <eos>")


@pytest.fixture(scope="session")
def opening_tokenizer():
    """Opens every text with <bos>, as Llama's does."""
    return train_tokenizer("<bos> $A")


# The fixtures are all that a conftest takes from here, also those whose names begin with an underscore.
__all__ = [name for name, value in list(globals().items()) if type(value).__name__ == "FixtureFunctionDefinition"]

"""Gradients of embeddings, tied or not, in the models that people train, against autograd one row at a time."""

import copy

import pytest
import torch
from projections import rademacher
from recordings import build as built
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from lorif_hf.algebra.projection import TwoSidedProjection
from lorif_hf.algebra.tables import TableMoments, table_roots
from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective


VOCABULARY = 320
DECODERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 48}
HEADS = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 24))}
HEADS |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16, "init_std": 0.3}
OURS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def opt():
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "init_std": 0.3}
    return OPTForCausalLM(OPTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=48))


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **sizes, decoder_start_token_id=0))


def gemma():
    config = Gemma3TextConfig(**SIZES, **DECODERS, num_key_value_heads=1, head_dim=8, pad_token_id=0)
    return Gemma3ForCausalLM(config)


def whisper():
    return WhisperForConditionalGeneration(
        WhisperConfig(**OURS, **HEADS, num_mel_bins=4, max_source_positions=6, max_target_positions=20)
    )


# By name: the model, and the embeddings that "all" tracks of it; "+": tied to the head.
MODELS = {
    "gpt2": (lambda: built("gpt2"), ["transformer.wte+", "transformer.wpe"]),
    "llama": (lambda: built("llama"), ["model.embed_tokens"]),
    "llama, tied": (lambda: built("llama", tie_word_embeddings=True), ["model.embed_tokens+"]),
    "gemma3": (gemma, ["model.embed_tokens+"]),
    "bert": (
        lambda: BertForMaskedLM(BertConfig(**SIZES, **DECODERS)),
        [f"bert.embeddings.{name}" for name in ("word_embeddings+", "position_embeddings", "token_type_embeddings")],
    ),
    "opt": (opt, ["model.decoder.embed_tokens+", "model.decoder.embed_positions"]),
    "bart": (
        lambda: BartForConditionalGeneration(BartConfig(**OURS, **HEADS, max_position_embeddings=48)),
        ["model.shared+", "model.encoder.embed_positions", "model.decoder.embed_positions"],
    ),
    "whisper": (whisper, ["model.decoder.embed_tokens+", "model.decoder.embed_positions"]),
}


def made(make):
    torch.manual_seed(0)
    model = make().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "sinus" not in name:
            torch.nn.init.normal_(parameter.data, std=0.3)
    return model


def batch_for(model, token_batch):
    batch = token_batch([7, 4, 5])
    if isinstance(model, WhisperForConditionalGeneration):
        return {"input_features": torch.randn(3, 4, 12), "labels": batch["labels"]}
    return batch


def row_losses(model, batch):
    labels = batch["labels"]
    logits = model(**batch).logits
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    return losses.view(labels.shape).sum(dim=1)


def tables_of(model):
    return [t for t in tracked_modules(model, "all") if t.kind.name == "embedding"]


def recorded(model, batches, modules, projections, **options):
    objective = LossObjective(task_of(model, row_losses))
    with GradientRecorder(model, modules, projections, objective, **options) as recorder:
        parts = [recorder.record(batch).gradients for batch in batches]
    return {t.name: torch.cat([part[t.name] for part in parts]) for t in modules}


def singles(batch):
    return [{key: value[i : i + 1] for key, value in batch.items()} for i in range(3)]


def autograd(model, batch, modules):
    """Each row alone, float64 (3, V, H)."""
    trained = copy.deepcopy(model).requires_grad_(True)
    weights = [trained.get_submodule(t.name).weight for t in modules]
    rows = [torch.autograd.grad(row_losses(trained, row).sum(), weights) for row in singles(batch)]
    return {t.name: torch.stack(parts).double() for t, parts in zip(modules, zip(*rows, strict=True), strict=True)}


def unprojected(modules):
    return {t.name: TwoSidedProjection(None, None) for t in modules}


@pytest.mark.parametrize(("make", "names"), MODELS.values(), ids=MODELS)
def test_gradients_of_each_example(make, names, token_batch):
    model = made(make)
    batch, modules = batch_for(model, token_batch), tables_of(model)
    assert [t.name + "+" * bool(t.shared) for t in modules] == names
    before = copy.deepcopy(model.state_dict())
    expected = autograd(model, batch, modules)
    found = recorded(model, [batch], modules, unprojected(modules))
    drawn = {
        t.name: TwoSidedProjection.draw(t.matrix_shape, (9, 5), seed=0, name=t.name) for t in modules
    }  # narrower than either side
    projected = recorded(model, [batch], modules, drawn)
    for tracked in modules:
        name, gradients = tracked.name, expected[tracked.name]
        size = gradients.norm(dim=(1, 2))
        assert bool((size > 0).all())
        assert bool(((found[name] - gradients).norm(dim=(1, 2)) <= 1e-5 * size).all()), name
        sides = [
            rademacher(full, kept, seed=0, name=f"{name}/{side}").double()
            for full, kept, side in zip(tracked.matrix_shape, (9, 5), ("in", "out"), strict=True)
        ]
        narrow = sides[0].T @ gradients @ sides[1]
        assert bool(((projected[name] - narrow).norm(dim=(1, 2)) <= 1e-4 * size).all()), name
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_table_of_distances_is_recorded_of_each_row_alone(token_batch):
    """T5's attention bias is looked up once for all rows, by their tokens' distances."""
    model = made(t5)
    batch, modules = token_batch([7, 4, 5]), tables_of(model)
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias"
    assert [t.name for t in modules] == ["shared", f"encoder.{bias}", f"decoder.{bias}"]
    with pytest.raises(UnsupportedModuleError, match=r"relative_attention_bias' saw 7 rows in a batch of 3 examples"):
        recorded(model, [batch], modules, unprojected(modules))
    together = recorded(model, [batch], modules[:1], unprojected(modules[:1]))
    found = recorded(model, singles(batch), modules, unprojected(modules), alone=True)
    expected = autograd(model, batch, modules)
    for name, gradients in expected.items():
        assert bool(((found[name] - gradients).norm(dim=(1, 2)) <= 1e-5 * gradients.norm(dim=(1, 2))).all()), name
    torch.testing.assert_close(together["shared"].double(), expected["shared"], rtol=1e-4, atol=1e-5)


def test_the_row_of_padding_has_no_gradient_but_from_the_head(token_batch):
    """Rows that hold padding tokens, to which attention and loss pay no heed, and one that holds them as text."""
    batch = token_batch([7, 4, 5])
    batch["input_ids"][0, 2] = 0
    for make, tied in ((MODELS["llama"][0], False), (MODELS["llama, tied"][0], True)):
        model = made(make)
        modules = tables_of(model)
        found = recorded(model, [batch], modules, unprojected(modules))["model.embed_tokens"]
        expected = autograd(model, batch, modules)["model.embed_tokens"]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
        assert bool(found[:, 0].any()) is tied


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made while it is entered."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [part for part in tree_leaves(result) if isinstance(part, torch.Tensor) and part.is_contiguous()]
        self.size = max([self.size, *(part.numel() for part in made)])
        return result


def test_nothing_is_made_of_the_vocabulary_by_itself_or_of_a_rows_whole_gradient(token_batch):
    """Rows of 4 tokens and a width of 8: the logits are smaller than three gradients of V x H."""
    rows, width, batch = 5000, 8, token_batch([4, 4, 4])
    model = built("gpt2", vocab_size=rows, n_embd=width)
    tracked = [t for t in tables_of(model) if t.name == "transformer.wte"]
    drawn = {t.name: TwoSidedProjection.draw((rows, width), (width, width), seed=0, name=t.name) for t in tracked}
    moments = {t.name: TableMoments.zeros(rows, width) for t in tracked}
    scales = {t.name: torch.rand(rows) + 0.5 for t in tracked}
    with Largest() as made:
        recorded(model, [batch], tracked, drawn, statistics=moments)
        recorded(model, [batch], tracked, drawn, scales=scales)
        table_roots(moments["transformer.wte"], damping=0.1)
    assert made.size == 3 * 4 * rows


def test_in_bfloat16_they_are_close_to_float32(token_batch):
    model = made(MODELS["gpt2"][0])
    batch, modules = token_batch([7, 4, 5]), tables_of(model)
    scales = {"transformer.wte": torch.rand(VOCABULARY) + 0.5}
    expected = recorded(model, [batch], modules, unprojected(modules), scales=scales)
    coarse = recorded(model.bfloat16(), [batch], modules, unprojected(modules), scales=scales)
    for name, gradients in coarse.items():
        assert gradients.dtype == torch.float32
        assert float((gradients - expected[name]).norm() / expected[name].norm()) < 0.05, name

"""Stacks of matrices, followed: what is recorded is autograd's gradient, however the module multiplies with them."""

import pytest
import torch
import torch.nn.functional as F
from mixtures import autograd, batch_of, errors_of, recorded, tracked_of
from recordings import draw
from torch import nn
from transformers import AutoModelForCausalLM, JetMoeConfig, Llama4TextConfig

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers import Linear
from lorif_hf.layers.modules import TrackedModule
from lorif_hf.layers.stacks import Stack, TransposedStack
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective


B, T, SIZE = 3, 5, 4
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "intermediate_size_mlp": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


class Mixed(nn.Module):
    """Three experts of a square stack, used by `how`."""

    def __init__(self, how, size_out=SIZE):
        super().__init__()
        self.num_experts = 3
        self.stack = nn.Parameter(torch.randn(3, SIZE, size_out))
        self.how = how

    def forward(self, x):
        y = self.how(x, self.stack)
        return (y.float().sin() * torch.arange(1, y[0].numel() + 1).view(y[0].shape)).flatten(1).sum(dim=1)


ALL = {
    "one after another": lambda x, w: sum(x @ w[e] * e for e in (1, 2)),
    "of another dtype": lambda x, w: (x.double() @ w[2].double()).float(),
    "all cast at once": lambda x, w: x.double() @ w.double()[1],
    "bmm": lambda x, w: torch.bmm(x.reshape(1, -1, SIZE).repeat(3, 1, 1), w).sum(dim=0).view(B, -1, w.shape[2]),
    "broadcast": lambda x, w: (x.flatten(0, 1) @ w).cos().sum(dim=0).view(len(x), -1, w.shape[2]),
    "matmul of the stack and of one": lambda x, w: (
        (x.flatten(0, 1) @ w)[0].view(len(x), -1, w.shape[2]) + x.cos() @ w[0]
    ),
}
TURNED = {
    "linear": lambda x, w: F.linear(x, w[0]) + F.linear(x.cos(), w[2]),
    "a transpose": lambda x, w: x @ w[1].mT,
    "bmm of transposes": lambda x, w: (
        torch.bmm(x.reshape(1, -1, SIZE).repeat(3, 1, 1), w.mT).sum(dim=0).view(B, -1, SIZE)
    ),
}


def record(model, kind, x):
    tracked = TrackedModule.of("layer", kind, model, followed=True, parameter="stack")
    objective = LossObjective(task_of(model, lambda model, batch: model(batch["x"])))
    with GradientRecorder(model, [tracked], draw([tracked], 1), objective) as recorder:
        return recorder.record({"x": x, "input_ids": torch.zeros(x.shape[:2])}).gradients[tracked.name].float()


def by_autograd(model, kind, x):
    parts = [torch.autograd.grad(model(x)[row], [model.stack])[0] for row in range(len(x))]
    return torch.stack([kind.as_matrix(part) for part in parts])


@pytest.mark.parametrize("how", ALL.values(), ids=ALL)
@pytest.mark.parametrize("size_out", [SIZE, 6])
def test_products_from_the_right(how, size_out):
    torch.manual_seed(0)
    model, x = Mixed(how, size_out), torch.randn(B, T, SIZE)
    expected = by_autograd(model, TransposedStack(), x)
    torch.testing.assert_close(record(model, TransposedStack(), x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Stack(), TransposedStack()], ids=lambda kind: kind.name)
@pytest.mark.parametrize("how", TURNED.values(), ids=TURNED)
def test_products_with_transposes(how, kind):
    torch.manual_seed(0)
    model, x = Mixed(how), torch.randn(B, T, SIZE)
    torch.testing.assert_close(record(model, kind, x), by_autograd(model, kind, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Stack(), TransposedStack()], ids=lambda kind: kind.name)
def test_whatever_the_kind_takes_the_orientation_to_be(kind):
    torch.manual_seed(0)
    model, x = Mixed(lambda x, w: x @ w[1] + (x.flatten(0, 1) @ w)[2].view(len(x), -1, 6), 6), torch.randn(B, T, SIZE)
    torch.testing.assert_close(record(model, kind, x), by_autograd(model, kind, x), rtol=1e-4, atol=1e-4)


class Grouped(nn.Linear):
    """A layer (O, I) whose rows come in groups, each for an input of its own, as DeepSeek-V4's."""

    def forward(self, x):
        weight = self.weight.view(3, -1, self.in_features).transpose(1, 2)
        y = torch.bmm(x.reshape(-1, 3, self.in_features).transpose(0, 1), weight)
        return (y.transpose(0, 1).reshape(len(x), -1).sin() * torch.arange(y.numel() // len(x))).sum(dim=1)


@pytest.mark.parametrize("size_out", [12, 6])
def test_a_plain_matrix_as_a_stack_of_its_rows(size_out):
    torch.manual_seed(0)
    model, x = Grouped(SIZE, size_out, bias=False), torch.randn(B, T, 3, SIZE)
    tracked = TrackedModule.of("layer", Linear(), model)
    objective = LossObjective(task_of(model, lambda model, batch: model(batch["x"])))
    with GradientRecorder(model, [tracked], draw([tracked], 1), objective) as recorder:
        found = recorder.record({"x": x, "input_ids": torch.zeros(B, T)}).gradients["layer"]
    expected = torch.stack([torch.autograd.grad(model(x)[row], [model.weight])[0].mT for row in range(B)])
    assert tracked.followed
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def routed(x, w):
    """Each token to one expert, of all rows' tokens together; those of an expert stand side by side."""
    flat = x.flatten(0, 1)
    experts = flat.argmax(dim=1) % 3
    y = flat.new_zeros(len(flat), w.shape[2])
    for expert in range(3):
        y[experts == expert] = flat[experts == expert] @ w[expert]
    return y.view(len(x), -1, w.shape[2])


def test_tokens_of_an_expert_are_whose_only_where_rows_go_alone():
    torch.manual_seed(0)
    model, x = Mixed(routed), torch.randn(B, T, SIZE)
    with pytest.raises(UnsupportedModuleError, match=r"'layer\.stack' saw \d+ rows .* one row at a time"):
        record(model, TransposedStack(), x)
    expected = by_autograd(model, TransposedStack(), x)
    for row in range(B):
        found = record(model, TransposedStack(), x[row : row + 1])[0]
        torch.testing.assert_close(found, expected[row], rtol=1e-4, atol=1e-4)


def test_a_part_of_a_matrix_is_none_of_the_stack():
    model, x = Mixed(lambda x, w: x[..., :2] @ w[0][:2] + x @ w[1]), torch.randn(B, T, SIZE)
    found, expected = record(model, TransposedStack(), x), by_autograd(model, TransposedStack(), x)
    torch.testing.assert_close(found[:, :, SIZE : 2 * SIZE], expected[:, :, SIZE : 2 * SIZE], rtol=1e-4, atol=1e-4)
    assert not found[:, :, :SIZE].any() and expected[:, :, :SIZE].any()


@pytest.mark.parametrize("config, lengths", [(Llama4TextConfig, (7, 4, 5)), (JetMoeConfig, (6,))])
def test_models_that_multiply_by_themselves(config, lengths):
    """Llama 4 multiplies all tokens with every expert; JetMoE sorts them, so that rows go alone."""
    torch.manual_seed(0)
    special = {"interleave_moe_layer_step": 1} if config is Llama4TextConfig else {"kv_channels": 8}
    heads = {"num_attention_heads": 4} if config is JetMoeConfig else {"num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(config(**{**SIZES, **special, **heads})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tracked, batch = tracked_of(model, "all-linear"), batch_of(lengths)
    assert sum(t.kind.name.startswith("stack") for t in tracked) >= 4
    errors = errors_of(recorded(model, tracked, batch).gradients, autograd(model, tracked, batch))
    assert max(errors.values()) < 1e-5, errors

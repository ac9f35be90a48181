"""The gradient of a vector along which an output is affine is the sum of h dY, whatever the module."""

import copy

import accelerate
import peft
import pytest
import torch
from layer_gradients import both_gradients, spread
from torch import nn
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2GRN
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2LayerScale
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated
from transformers.models.t5.modeling_t5 import T5LayerNorm

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers import BatchShape, Elementwise, kind_of
from lorif_hf.layers.base import kinds_of


class Scale(nn.Module):
    def __init__(self, size, first=False):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(size))
        self.first = first

    def forward(self, x):
        return (x.mT * self.factor).mT if self.first else x * self.factor


TOKENS, IMAGES = (3, 5, 4), (3, 4, 6, 5)
CASES = {
    "LayerNorm": (nn.LayerNorm(4), "weight", TOKENS),
    "LayerNorm, bias": (nn.LayerNorm(4), "bias", TOKENS),
    "RMSNorm": (nn.RMSNorm(4), "weight", TOKENS),
    "Llama": (LlamaRMSNorm(4), "weight", TOKENS),
    "Gemma": (Gemma3RMSNorm(4), "weight", TOKENS),
    "T5": (T5LayerNorm(4), "weight", TOKENS),
    "of heads": (LlamaRMSNorm(4), "weight", (3, 5, 2, 4)),
    "BatchNorm1d": (nn.BatchNorm1d(4), "weight", (3, 4)),
    "BatchNorm2d": (nn.BatchNorm2d(4), "weight", IMAGES),
    "BatchNorm2d, bias": (nn.BatchNorm2d(4), "bias", IMAGES),
    "BatchNorm2d, as wide as it has channels": (nn.BatchNorm2d(4), "weight", (3, 4, 4, 4)),
    "LayerNorm, as many tokens as features": (nn.LayerNorm(4), "bias", (3, 4, 4)),
    "as many examples as features": (nn.LayerNorm(3), "weight", (3, 5, 3)),
    "GroupNorm": (nn.GroupNorm(2, 4), "weight", IMAGES),
    "InstanceNorm": (nn.InstanceNorm2d(4, affine=True), "weight", IMAGES),
    "a layer scale": (Dinov2LayerScale(Dinov2Config(hidden_size=4)), "lambda1", TOKENS),
    "GRN": (ConvNextV2GRN(4), "weight", (3, 6, 5, 4)),
    "PReLU": (nn.PReLU(4), "weight", IMAGES),
    "PReLU of one": (nn.PReLU(), "weight", IMAGES),
    "a number": (Scale(1), "factor", TOKENS),
    "a number without an axis": (Scale(()), "factor", TOKENS),
    "a number, of numbers": (Scale(()), "factor", (3,)),
    "on the first axis of features": (Scale(5, first=True), "factor", TOKENS),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_autograd(case):
    module, parameter, shape = CASES[case]
    module = spread(module)
    if getattr(module, "running_var", None) is not None:
        module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    before = copy.deepcopy(module.state_dict())
    torch.testing.assert_close(*both_gradients(module, parameter, torch.randn(shape)), atol=1e-4, rtol=1e-4)
    assert kind_of(module, parameter).name == "elementwise"
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("cls", [MambaRMSNormGated(4, 2), Qwen3NextRMSNormGated(4)], ids=["Mamba2", "Qwen3-Next"])
def test_a_gate_comes_as_a_second_argument(cls):
    pair = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    torch.testing.assert_close(*both_gradients(spread(cls), "weight", *pair), atol=1e-5, rtol=1e-4)


def test_arguments_by_name():
    module, x = spread(LlamaRMSNorm(4)), torch.randn(3, 5, 4)
    torch.testing.assert_close(*both_gradients(module, "weight", hidden_states=x), atol=1e-5, rtol=1e-4)


def test_of_flattened_tokens_and_of_a_single_input():
    module = spread(nn.LayerNorm(4))
    torch.testing.assert_close(*both_gradients(module, "weight", torch.randn(6, 4), examples=2, tokens=3))
    torch.testing.assert_close(*both_gradients(module, "bias", torch.randn(4), examples=1))


def test_in_16_bits_a_step_of_1_is_not_lost_in_a_large_output():
    module = spread(nn.LayerNorm(4)).bfloat16()
    module.weight.data.fill_(3000.0)
    found, expected = both_gradients(module, "bias", torch.randn(3, 5, 4).bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=0.1, rtol=2e-2)


def test_the_magnitudes_of_dora():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    settings = peft.LoraConfig(r=2, target_modules=["0"], use_dora=True, init_lora_weights=False)
    layer = peft.get_peft_model(model, settings).eval().base_model.model[0]
    calls, magnitude = [], layer.lora_magnitude_vector["default"]
    layer.lora_A["default"].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    assert Elementwise().accepts(magnitude, "weight") and Elementwise().shape(magnitude, "weight").features == (1, 6)
    kept = {}

    def keep(module, args, kwargs, output):
        kept.update(args=args, kwargs=kwargs, output=output)

    magnitude.register_forward_hook(keep, with_kwargs=True)
    x = torch.randn(3, 5, 4)
    returned = torch.randn_like(layer(x))
    output, weight = kept["output"], magnitude.weight
    tokens = Elementwise().tokens(magnitude, "weight", kept["args"], kept["kwargs"], BatchShape(3, 5))
    found = tokens.inputs.mT @ tokens.output_gradients(returned)
    parts = [torch.autograd.grad(output[i], weight, returned[i], retain_graph=True)[0] for i in range(3)]
    torch.testing.assert_close(found, torch.stack(parts).view(3, 1, 6), atol=1e-5, rtol=1e-4)


def test_what_is_told_of_a_vector_that_acts_otherwise():
    class Shifts(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x + self.by.sum()

    x = torch.randn(3, 4, 4)
    with pytest.raises(UnsupportedModuleError, match=r"\(3, 4, 4\) of a Shifts has no axis along which its by \(4\)"):
        Elementwise().tokens(Shifts(), "by", (x,), {}, BatchShape(3, None))


def test_examples_that_cannot_be_told_apart():
    module = nn.LayerNorm(4)
    tokens = Elementwise().tokens(module, "weight", (torch.randn(5, 4),), {}, BatchShape(3, None))
    assert tokens.inputs is None and tokens.output_gradients(torch.randn(5, 4)) is None


def test_what_is_none():
    accepts = Elementwise().accepts
    assert not accepts(nn.ParameterList([torch.ones(3)]), "0")
    assert not accepts(nn.GRU(2, 3), "bias_ih_l0") and not accepts(nn.Bilinear(2, 3, 4), "bias")
    assert {name: kind.name for name, kind in kinds_of(nn.Linear(3, 1)).items()} == {
        "weight": "linear",
        "bias": "bias",
    }

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.D, self.part = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

    assert not accepts(Mixer(), "D")


@pytest.mark.parametrize("bias", [True, False])
def test_an_offloaded_norm_has_its_numbers_all_the_same(bias):
    """Its weights are there in its call alone, and looked at after it."""
    torch.manual_seed(0)
    norm, x = nn.LayerNorm(6, bias=bias), torch.randn(2, 3, 6)
    nn.init.normal_(norm.weight)
    batch = BatchShape(2, 3)
    expected = Elementwise().tokens(norm, "weight", (x,), {}, batch)
    gradient = torch.randn(2, 3, 6)
    accelerate.cpu_offload(norm, execution_device=torch.device("cpu"))
    assert norm.weight.is_meta
    found = Elementwise().tokens(norm, "weight", (x,), {}, batch)
    assert torch.equal(found.output_gradients(gradient), expected.output_gradients(gradient))

"""`target_modules="all"`: every kind's gradients equal autograd's; what cannot be recorded rightly is left out."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kinds import bert, built, llama, rows_of
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import make_gpt2
from torch import nn
from transformers import (
    BertForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from truth import GRADIENTS, gram, relative_error

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import RecordingCheckError, UnsupportedModuleError


ALL = replace(GRADIENTS, target_modules="all")


def spread(model):
    """The model with norms and biases that are neither 0 nor 1, nor statistics of nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(2)
    return model


def vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3))


def resnet():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config)


def images(size, count=5):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, size, size, generator=generator).tolist()
    return [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(pixels)]


def classified(count=5):
    return [{**row, "labels": i % 3} for i, row in enumerate(rows_of()[:count])]


def _loss(model, row):
    """The own loss of a row with a label."""
    return model(**{key: torch.tensor([value]) for key, value in row.items()}).loss


def _stored_error(index, model, rows, loss):
    """The relative error of the inner products of what is stored: a query of images needs a task."""
    files = sorted(Path(index.path).glob("factors/*.safetensors"))
    stored = torch.cat([torch.cat([v.flatten(1) for v in load_file(f).values()], dim=1) for f in files]).double()
    expected = gram(index, model, rows, loss)
    return float((stored @ stored.T - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("make", [make_gpt2, llama], ids=["gpt2", "llama"])
def test_of_a_language_model_every_parameter(tmp_path, make):
    model, rows = spread(make()), rows_of()
    before = copy.deepcopy(model.state_dict())
    index = built(model, rows, tmp_path, ALL)
    assert relative_error(index, model, rows) < 1e-4
    assert index.coverage.share == 1 and index.manifest.objective == "causal-lm" and not index.manifest.alone
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "make, rows",
    [
        (lambda: bert(BertForSequenceClassification, num_labels=3), classified()),
        (vit, images(8)),
        (resnet, images(32)),
    ],
    ids=["bert", "vit", "resnet"],
)
def test_of_a_classifier_every_parameter(tmp_path, make, rows):
    torch.manual_seed(0)
    model = spread(make())
    before = copy.deepcopy(model.state_dict())
    index = built(model, rows, tmp_path, ALL)
    assert _stored_error(index, model, rows, _loss) < 1e-4
    assert index.coverage.share == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_of_mamba_all_but_its_decay(tmp_path):
    """It multiplies with the weights of convolutions and layers that it never calls, and with a bare vector, D."""
    config = MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0)
    torch.manual_seed(0)
    model, rows = spread(MambaForCausalLM(config)), rows_of()
    index = built(model, rows, tmp_path, ALL)
    assert relative_error(index, model, rows) < 1e-4
    left = {u.name.rpartition(".")[2] for u in index.coverage.untracked}
    assert left == {"A_log"} and not index.manifest.alone
    mixer = "backbone.layers.0.mixer."
    followed = {entry.name.removeprefix(mixer) for entry in index.manifest.modules if entry.followed}
    assert {"D", "conv1d", "conv1d.bias", "dt_proj", "dt_proj.bias"} <= followed
    again = InfluenceIndex.from_pretrained(tmp_path / "index")
    assert relative_error(again, model, rows) < 1e-4


class Squashed(nn.Module):
    """A layer that calls itself a norm, and is not affine in its `alpha`."""

    def __init__(self, size):
        super().__init__()
        self.alpha, self.weight = nn.Parameter(torch.tensor([0.5])), nn.Parameter(torch.ones(size))

    def forward(self, x):
        return torch.tanh(self.alpha.exp() * x) * self.weight


class Pair(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x), None


class Unpaired(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.pair = Pair(size)

    def forward(self, x):
        return self.pair(x)[0]


class Mixed(nn.Module):
    """Its vector is no longer that of features where it comes out."""

    def __init__(self, size):
        super().__init__()
        self.by = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x + self.by.sum()


@pytest.mark.parametrize(
    "make, name, what",
    [
        (Squashed, "model.norm.alpha", "what would be recorded of it differs from autograd's gradient"),
        (Unpaired, "model.norm.pair", "it cannot be recorded: Module 'model.norm.pair' (a Pair) returns a tuple"),
        (Mixed, "model.norm.by", "what would be recorded of it differs from autograd's gradient"),
    ],
)
def test_what_cannot_be_recorded_is_left_out_and_told(tmp_path, caplog, make, name, what):
    model, rows = llama(), rows_of()
    model.model.norm = make(16)
    index = built(model, rows, tmp_path, ALL)
    names = [entry.name for entry in index.manifest.modules]
    assert name not in names and "model.layers.0.input_layernorm" in names and not index.manifest.alone
    reason = next(u.reason for u in index.coverage.untracked if u.name in (name, f"{name}.weight"))
    assert reason.startswith(what) and "left out of the index" in caplog.text
    assert relative_error(index, model, rows) < 1e-4
    config = replace(ALL, target_modules=[name, "q_proj"])
    with pytest.raises((RecordingCheckError, UnsupportedModuleError), match=f"exclude_modules=.'{name}'"):
        built(model, rows, tmp_path / "named", config)


def dora():
    adapter = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True, init_lora_weights=False)
    return get_peft_model(llama(), adapter)


def biases():
    model = llama(attention_bias=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return model


@pytest.mark.parametrize("make, count", [(dora, 12), (biases, 8)])
def test_magnitudes_of_dora_and_biases_alone(tmp_path, make, count):
    model, rows = spread(make()), rows_of()
    index = built(model, rows, tmp_path, ALL)
    assert index.coverage.share == 1 and len(index.manifest.modules) == count
    assert relative_error(index, model, rows) < 1e-4


def test_a_probe_of_norms_alone(tmp_path):
    model, rows = spread(llama()).requires_grad_(False), rows_of()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    index = built(model, rows, tmp_path, ALL)
    assert index.coverage.share == 1 and len(index.manifest.modules) == 5
    assert relative_error(index, model, rows) < 1e-4


def test_frames_that_a_model_puts_where_the_examples_are_are_recorded_one_row_at_a_time(tmp_path):
    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.out = nn.Conv2d(2, 6, 2, stride=2), nn.Linear(6, 3)

        def forward(self, video, labels):
            frames = self.patches(video.flatten(0, 1)).mean(dim=(2, 3)).tanh().unflatten(0, video.shape[:2])
            losses = nn.functional.cross_entropy(self.out(frames.mean(dim=1)), labels, reduction="none")
            return {"loss": losses.sum()}

    torch.manual_seed(0)
    model = Video()
    rows = [{"video": torch.randn(3, 2, 4, 4).tolist(), "labels": i % 3} for i in range(4)]
    index = built(model, rows, tmp_path, ALL)
    assert index.manifest.alone and index.coverage.share == 1

    def loss(model, row):
        return model(torch.tensor([row["video"]]), torch.tensor([row["labels"]]))["loss"]

    assert _stored_error(index, model, rows, loss) < 1e-4


CONFIGS = {
    "the default": {},
    "best": InfluenceConfig.best,
    "smallest": InfluenceConfig.smallest,
    "paper": InfluenceConfig.paper,
    "logra": InfluenceConfig.logra,
    "trak": lambda **changes: InfluenceConfig.trak(projection_dim=64, **changes),
    "low-rank, of more pairs than a vector has": {"curvature": "low-rank", "whitening": "none", "factor_rank": 3},
    "low-rank of whitened": {"curvature": "low-rank", "curvature_rank": None},
    "normalised": {"normalize": True},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_takes_vectors(tmp_path, name):
    make = CONFIGS[name]
    config = make(target_modules="all") if callable(make) else InfluenceConfig(target_modules="all", **make)
    model, rows = spread(make_gpt2()), rows_of((6, 3, 7, 2, 8, 4, 5, 9))
    index = built(model, rows, tmp_path, config)
    vectors = [entry for entry in index.manifest.modules if entry.in_features == 1]
    assert len(vectors) == 18 and all(entry.d1 == 1 for entry in vectors)
    influence = index.self_influence()
    assert bool(torch.isfinite(influence).all()) and bool((influence > 0).all())
    scores = index.scores(model, rows)
    assert bool(torch.isfinite(scores).all()) and int((scores.argmax(dim=1) == torch.arange(8)).sum()) >= 5

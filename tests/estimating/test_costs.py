"""What an index would cost: against indices that were built."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2, make_rows, plain_config
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.curvature.encoding import bytes_per_example
from lorif_hf.estimating.costs import PRESETS, LaidOut, estimates, weight_bytes
from lorif_hf.storage.files import parse_header
from lorif_hf.storage.layout import CURVATURE


CONFIGS = {
    "factors": InfluenceConfig.paper(projection_factor=2, factor_rank=2),
    "packed": plain_config(projection_factor=1, factor_rank=3, bits=1, whitening="kronecker", curvature="kronecker"),
    "both": plain_config(projection_factor=2, factor_rank=3, bits=4, whitening="kronecker", curvature="low-rank"),
    "logra": InfluenceConfig.logra(),
    "trak": InfluenceConfig.trak(projection_dim=16),
}


def shape(kind, config, dtype=torch.bfloat16, adapted=False):
    with torch.device("meta"):
        model = kind(config).to(dtype)
        if adapted:
            lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, lora)
    return model


def small_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=1, **sizes)).eval()


def tensor_bytes(path):
    content = path.read_bytes()
    return sum(span.end - span.begin for span in parse_header(path.name, len(content), content).values())


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_are_those_of_the_built_index(tmp_path, name):
    config, model, count = CONFIGS[name], make_gpt2(), 9
    index = InfluenceIndex.build(model, make_rows(count), tmp_path / "index", config=config)
    found = estimates(model, count, 16, {name: config}, 1e9)[name]
    stored = sum(tensor_bytes(tmp_path / "index" / shard.file) for shard in index.manifest.shards)
    assert found.bytes_per_example * count == stored == bytes_per_example(config, index.manifest.modules) * count
    # The dual curvature drops directions that are rounding noise, so that it may be smaller than announced.
    fitted, announced = tensor_bytes(tmp_path / "index" / CURVATURE), found.index_bytes - stored
    small = 4 * 64 + 16  # eigenvalues, damping and trace of a module
    assert 0.8 * announced <= fitted <= announced + small * len(index.manifest.modules)


def test_nothing_is_loaded_and_times_grow_with_the_work():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    configs = {name: make() for name, make in PRESETS.items()}
    few, many = (estimates(model, count, 128, configs, 1e12) for count in (1_000, 10_000))
    for name in configs:
        assert few[name].problem is None
        assert many[name].seconds.recording > 5 * few[name].seconds.recording > 0
        assert many[name].index_bytes > few[name].index_bytes
    assert few["paper"].bytes_per_example == 73_728  # 48 layers, (I + O) / 4 * 2 bytes


def test_a_config_that_the_model_cannot_have_is_said_beside_the_others():
    found = estimates(make_gpt2(), 10, 16, {"a": InfluenceConfig.paper(factor_rank=10), "b": CONFIGS["factors"]}, 1e9)
    assert "factor_rank=10 is above the limit of module" in found["a"].problem
    assert found["b"].problem is None


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "LoRA"])
def test_layers_that_share_inputs_are_counted_as_a_build_finds_them(tmp_path, adapted):
    model = small_llama()
    if adapted:
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, lora).eval()
    config = InfluenceConfig(max_projection_dim=12)
    index = InfluenceIndex.build(model, make_rows(5), tmp_path / "index", config=config)
    entries = LaidOut(model, config).entries(config)
    laid_out, built = (
        [(entry.name, entry.d1, entry.d2, entry.input_of) for entry in layers]
        for layers in (entries, index.manifest.modules)
    )
    assert laid_out == built
    assert any(entry.input_of for entry in entries)
    found = estimates(model, 5, 8, {"": config}, 1e9)[""]
    assert found.fixed_bytes == tensor_bytes(tmp_path / "index" / CURVATURE)


LLAMA_70B = {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80}
WIDE = {
    "7B": (LlamaConfig(), False, 1e9, 4e9),
    "7B, LoRA": (LlamaConfig(), True, 1e9, 4e9),
    "70B": (LlamaConfig(**LLAMA_70B, num_attention_heads=64, num_key_value_heads=8), False, 4e9, 16e9),
}


@pytest.mark.parametrize("name", WIDE)
def test_the_default_is_small_however_wide_the_model(name):
    config, adapted, most_fixed, most_memory = WIDE[name]
    model = shape(LlamaForCausalLM, config, adapted=adapted)
    found = estimates(model, 10_000, 512, {"": InfluenceConfig()}, 1e12)[""]
    assert found.unseen is None
    assert 0.5 * most_fixed < found.fixed_bytes <= most_fixed
    assert found.fit_memory <= most_memory


def test_a_token_meets_the_experts_that_it_goes_to_and_no_others():
    """What the pass takes: two operations for each weight that a token meets, forward and back."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "vocab_size": 100, "num_experts_per_tok": 2}
    configs = [MixtralConfig(num_local_experts=count, **sizes) for count in (4, 16)]
    few, many = (shape(MixtralForCausalLM, config) for config in configs)
    seconds = [estimates(model, 10, 4, {"": plain_config()}, 1.0)[""].seconds for model in (few, many)]
    router = 2 * 2 * 2 * (16 - 4) * 64 * 4 * 10  # its outputs are as many as the experts
    assert seconds[1].recording - seconds[0].recording == pytest.approx(router, rel=0.5)
    forward = LaidOut(few, plain_config(), 4).forward
    experts = 2 * 2 * 3 * 64 * 96  # layers, experts of a token, matrices
    assert forward.experts == 2 and forward.problem is None
    assert forward.flops > 2 * 4 * experts


def test_the_memory_of_the_model_is_that_of_its_dtype():
    model = shape(GPT2LMHeadModel, GPT2Config(n_layer=1))
    tied = sum(parameter.numel() for parameter in model.parameters())  # the head is the embedding
    assert weight_bytes(model) == 2 * tied + sum(b.numel() * b.element_size() for b in model.buffers())
    few, many = (estimates(model, 10, 64, {"": InfluenceConfig()}, 1e9, batch)[""] for batch in (1, 4))
    assert many.batch_memory == 4 * few.batch_memory
    assert few.memory == few.model_memory + few.batch_memory + few.sizes.memory


def test_whitening_costs_its_tokens_and_its_roots():
    model = small_llama()
    plain, whitened = plain_config(projection_factor=1), InfluenceConfig()
    few = estimates(model, 100, 8, {"plain": plain, "whitened": whitened}, 1e6)
    long = estimates(model, 100, 16, {"plain": plain, "whitened": whitened}, 1e6)
    assert few["plain"].seconds.first_pass == few["plain"].seconds.roots == 0
    assert long["whitened"].seconds.roots == few["whitened"].seconds.roots > 0
    assert long["whitened"].seconds.first_pass > 1.9 * few["whitened"].seconds.first_pass
    total = few["whitened"].seconds
    assert total.total == total.first_pass + total.roots + total.recording + total.fit


def test_what_cannot_be_seen_is_guessed_and_said():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 4)

        def forward(self, words):
            return self.layer(words)

    found = estimates(Odd(), 10, 4, {"": plain_config(projection_factor=2)}, 1.0)[""]
    assert "unexpected keyword argument 'input_ids'" in found.unseen
    assert found.seconds.recording >= 10 * 4 * 36 * 4 and found.problem is None

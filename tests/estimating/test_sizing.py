"""The best config for a budget, beside all that could be had."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2, make_rows
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.building.sizes import sizes_of
from lorif_hf.errors import ConfigError
from lorif_hf.estimating.costs import LaidOut
from lorif_hf.estimating.frontier import expected_quality


def wide(adapted=False):
    sizes = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 2, "num_attention_heads": 16}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes))
        lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, lora) if adapted else model


def sizes(model, config, count):
    return sizes_of(config, LaidOut(model, config).entries(config), count)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize(
    "index_size, max_memory", [("1GB", None), ("100MB", "1GB"), (None, "300MB"), ("20GB", "50MB")]
)
def test_what_is_chosen_fits_and_nothing_that_fits_is_expected_to_be_better(adapted, index_size, max_memory):
    model, count = wide(adapted), 20_000
    config = InfluenceConfig.sized(model, count, index_size, max_memory)
    bytes_of = {"1GB": 1e9, "100MB": 1e8, "300MB": 3e8, "20GB": 2e10, "50MB": 5e7, None: float("inf")}

    def fits(other):
        taken = sizes(model, other, count)
        return taken.index <= bytes_of[index_size] and taken.memory <= bytes_of[max_memory]

    assert fits(config)
    laid_out = LaidOut(model, config)
    best = expected_quality(config, laid_out.entries(config))
    for most in (64, 512, 768, 1024):
        for pairs in (1, 3, 8, 16):
            for bits in (1, 2, 4):
                other = InfluenceConfig(max_projection_dim=most, factor_rank=pairs, bits=bits, shard_size=200)
                if fits(other):
                    assert expected_quality(other, laid_out.entries(other)) <= best


def test_a_larger_budget_is_never_worse_and_a_huge_one_is_the_best_there_is():
    model = wide()
    budgets = ["10MB", "50MB", "200MB", "2GB", "1TB"]
    configs = [InfluenceConfig.sized(model, 20_000, budget) for budget in budgets]
    qualities = [expected_quality(c, LaidOut(model, c).entries(c)) for c in configs]
    assert qualities == sorted(qualities)
    assert (configs[-1].factor_rank, configs[-1].bits, configs[-1].max_projection_dim) == (16, 4, 3072)
    assert configs[-1].shard_size == InfluenceConfig().shard_size


def test_what_is_chosen_can_be_built(tmp_path):
    config = InfluenceConfig.sized(make_gpt2(), 6, "9kB", "50kB")
    index = InfluenceIndex.build(make_gpt2(), make_rows(6), tmp_path / "index", config=config, max_memory="50kB")
    assert sum(entry.bytes for entry in (*index.manifest.shards, index.manifest.curvature)) < 9_000 + 8_000  # headers


def test_what_the_user_sets_is_left_and_the_rest_is_searched():
    config = InfluenceConfig.sized(wide(), 20_000, "200MB", factor_rank=2, exclude_modules=["mlp.up_proj"], seed=3)
    assert (config.factor_rank, config.exclude_modules, config.seed) == (2, ["mlp.up_proj"], 3)


def test_a_name_is_enough(tmp_path):
    config = GPT2Config(n_embd=64, n_head=2, n_layer=1)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    assert InfluenceConfig.sized(str(tmp_path), 1000, "1MB") == InfluenceConfig.sized(model, 1000, "1MB")


def test_too_small_an_index_is_told_what_the_least_is():
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig.sized(wide(), 20_000, "1MB")
    text = str(caught.value)
    assert text.startswith("index_size=1000000 is too small: the least that works is ")
    least = int(text.split("the least that works is ")[1].split(" ", maxsplit=1)[0])
    assert (
        " for each of 20000 examples in 14 layers and 0 of whiteners and the like, with max_projection_dim=32, "
        in text
    )
    assert text.endswith("Allow as much, leave layers out with exclude_modules, or index fewer rows.")
    assert sizes(wide(), InfluenceConfig.sized(wide(), 20_000, least), 20_000).index == least
    with pytest.raises(ConfigError):
        InfluenceConfig.sized(wide(), 20_000, least - 1)


def test_too_little_memory_is_told_what_the_least_is_and_for_what():
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig.sized(wide(), 20_000, max_memory="10kB", whitening="kronecker")
    text = str(caught.value)
    assert text.startswith("max_memory=10000 is too small: the least that works is ")
    assert "of 14 layers" in text or "the shards of 200 rows" in text
    least = int(text.split("the least that works is ")[1].split(" ", maxsplit=1)[0])
    config = InfluenceConfig.sized(wide(), 20_000, max_memory=least, whitening="kronecker")
    assert sizes(wide(), config, 20_000).memory == least


def test_a_layer_that_is_too_wide_is_named():
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig.sized(wide(), 300, max_memory="1MB", max_projection_dim=None, whitening="kronecker")
    assert "for the moments of 14 layers (the widest is 'model.layers.0.mlp." in str(caught.value)
    assert ", 5504 x 2048)" in str(caught.value) or ", 2048 x 5504)" in str(caught.value)


def test_a_budget_that_either_half_of_would_do_is_told():
    """Small whiteners beside few bytes: what needs little memory needs many bytes here."""
    model = wide()
    config = InfluenceConfig.sized(model, 2_000_000, "1GB", whitening="kronecker", shard_size=10_000)
    needed = sizes(model, config, 2_000_000).memory
    assert InfluenceConfig.sized(model, 2_000_000, "1GB", needed, whitening="kronecker", shard_size=10_000)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, "1GB"), "num_examples must be an integer of at least 1, got 0"),
        ((10, "much"), "index_size must be a number of bytes or a size like \"2GB\", got 'much'"),
        ((10, None, 0), 'max_memory must be a number of bytes or a size like "2GB", got 0'),
        ((10,), "There is no budget: give index_size"),
    ],
)
def test_what_is_no_budget_is_told(arguments, message):
    with pytest.raises(ConfigError, match=message):
        InfluenceConfig.sized(make_gpt2(), *arguments)


def test_changes_that_no_layer_can_have_are_told():
    with pytest.raises(ConfigError, match="factor_rank=40 is above the limit of module"):
        InfluenceConfig.sized(make_gpt2(width=64), 10, "1GB", factor_rank=40, projection_factor=4)

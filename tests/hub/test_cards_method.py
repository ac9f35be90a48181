"""The sentence of an index's card that says how this very index was made."""

import pytest

from lorif_hf import InfluenceConfig
from lorif_hf.hub.cards import index_card, method_sentence
from lorif_hf.storage.layout import FactorShard, Manifest, TensorEntry


def manifest(config):
    return Manifest(
        config=config.to_dict(),
        objective="causal-lm",
        model={},
        dataset={},
        num_examples=2,
        modules=[],
        shards=[FactorShard("a", 8, "a" * 64, 0, 2, "b" * 64)],
        examples=[],
        curvature=TensorEntry("curvature/curvature.safetensors", 1, "d" * 64, "f" * 64),
        build="e" * 64,
    )


FACTORS = "Each training gradient is whitened with Kronecker-factored second moments and stored as rank-"
PROJECTED = "Each training gradient is projected at random to 1/4 of each layer's inputs and outputs and "
KRONECKER = "queries are preconditioned with the Kronecker-factored curvature."


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (InfluenceConfig(), f"{FACTORS}3 factors at 1 bit per number; {KRONECKER}"),
        (InfluenceConfig.smallest(), f"{FACTORS}1 factors at 1 bit per number; {KRONECKER}"),
        (InfluenceConfig.best(), f"{FACTORS}8 factors at 4 bits per number; {KRONECKER}"),
        (
            InfluenceConfig.paper(),
            f"{PROJECTED}stored as rank-1 factors in bfloat16; queries are preconditioned with a damped Hessian of "
            "rank 512 at most per layer.",
        ),
        (
            InfluenceConfig.logra(),
            f"{PROJECTED}stored without a low-rank factorisation in bfloat16; queries are preconditioned with a "
            "damped Hessian per layer.",
        ),
        (
            InfluenceConfig.trak(),
            "Each training gradient is projected at random, all layers together, to 2,048 numbers and stored without "
            "a low-rank factorisation in bfloat16; queries are preconditioned with a damped Hessian per layer.",
        ),
        (
            InfluenceConfig.grad_dot(factor_rank=2, bits=8),
            f"{PROJECTED}stored as rank-2 factors at 8 bits per number; scores are inner products of gradients, "
            "without curvature.",
        ),
        (
            InfluenceConfig.grad_cos(projection_factor=1, dtype="float32"),
            "Each training gradient is divided by its norm and stored without a low-rank factorisation in float32; "
            "scores are inner products of gradients, without curvature.",
        ),
    ],
    ids=["default", "smallest", "best", "paper", "logra", "trak", "grad_dot", "grad_cos"],
)
def test_the_card_says_how_this_very_index_was_made(config, sentence):
    assert method_sentence(config) == sentence
    card = index_card(manifest(config), config, "user/my-index", None)
    assert f"not a proof that an example caused an output. {sentence}\n" in card


def test_kinds_that_others_registered_are_named_as_they_are_and_harmless():
    config = InfluenceConfig()
    object.__setattr__(config, "whitening", "diagonal")
    object.__setattr__(config, "curvature", "e-kfac`<script>](x)\n\n# Big")
    assert method_sentence(config) == (
        "Each training gradient is whitened (diagonal) and stored as rank-3 factors at 1 bit per number; queries are "
        "preconditioned with the curvature e-kfacscriptx   Big."
    )

"""Gradients stored whole."""

import pytest
import torch
from stored import gradients
from tiny import plain_config

from lorif_hf.algebra.matrices import LowRankMatrices
from lorif_hf.codecs import DenseCodec
from lorif_hf.errors import ConfigError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dense_gradients_are_stored_as_they_are(dtype):
    matrices = gradients()
    codec = DenseCodec(dtype)
    parts = codec.encode(matrices)
    assert list(parts) == ["g"] and torch.equal(parts["g"], matrices.to(dtype))
    left, right = codec.factors(parts, *matrices.shape[1:])
    assert right is None and left is parts["g"]


def test_a_gradient_known_by_its_products_is_formed():
    left, right = torch.randn(4, 9, 2), torch.randn(4, 7, 2)
    matrices = LowRankMatrices(left, right, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(DenseCodec(torch.float32).encode(matrices)["g"], left @ right.mT)


def test_a_dense_codec_refuses_a_rank_and_bits():
    with pytest.raises(ConfigError) as caught:
        plain_config(codec="dense", factor_rank=3)
    assert str(caught.value) == "A dense index has no rank: set factor_rank=None, got 3."
    with pytest.raises(ConfigError) as caught:
        plain_config(factor_rank=None, codec="dense", bits=4)
    assert str(caught.value) == (
        "bits=4 needs factors: a dense index (factor_rank=None) is stored as dtype. Set a rank."
    )

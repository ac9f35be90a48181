"""No curvature: gradients are compared as they are."""

import pytest
import torch
from curvature_file import module_tensors

from lorif_hf import InfluenceConfig
from lorif_hf.building.fitting import shape_of
from lorif_hf.codecs import DenseCodec
from lorif_hf.curvature import Cost, NoCurvature, curvature_of
from lorif_hf.errors import ConfigError
from lorif_hf.storage.layout import ModuleEntry


ENTRY = ModuleEntry("a.b", "linear", 8, 12, 2, 3, "")


def test_nothing_is_gathered_fitted_kept_or_done(tmp_path):
    curvature = curvature_of(InfluenceConfig.grad_dot())
    assert isinstance(curvature, NoCurvature) and curvature.first_pass is None and curvature.keeps_rank
    shape = shape_of(ENTRY, 100, DenseCodec(torch.float32))
    assert curvature.cost(shape, None) == curvature.cost(shape, 1) == Cost() and curvature.fit(shape, {}, None) is None
    tensors = curvature.load(module_tensors(tmp_path, {}, ENTRY), ENTRY)
    gradients = torch.randn(5, 2, 3)
    assert tensors == {} and curvature.precondition(gradients, tensors) is gradients


def test_whitened_gradients_have_a_curvature():
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig.paper(curvature="none", whitening="kronecker")
    assert str(caught.value) == ("curvature='none' is the product of gradients as they are: set whitening='none'.")

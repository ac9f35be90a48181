"""How a curvature is chosen, and one of a user's own through a whole build and query."""

from dataclasses import dataclass

import pytest
import torch
from dense import gradients, make_task, off
from tiny import plain_config

from lorif_hf import InfluenceConfig, InfluenceIndex, curvature
from lorif_hf.curvature import (
    Cost,
    Curvature,
    FirstPass,
    Fitted,
    KroneckerCurvature,
    LowRankCurvature,
    NoCurvature,
    curvature_of,
)
from lorif_hf.errors import ConfigError, IndexFormatError, UnknownKindError
from lorif_hf.registry import CURVATURES


@pytest.mark.parametrize(
    "config, kind",
    [
        (InfluenceConfig.paper(), LowRankCurvature),
        (InfluenceConfig(), KroneckerCurvature),
        (InfluenceConfig(curvature="low-rank"), LowRankCurvature),
        (InfluenceConfig.grad_dot(), NoCurvature),
    ],
    ids=["paper", "default", "whitened low-rank", "dot product"],
)
def test_the_config_chooses_the_curvature(config, kind):
    assert type(curvature_of(config)) is kind and kind.name == config.curvature


def test_an_unknown_curvature_is_refused_with_the_known_ones():
    with pytest.raises(UnknownKindError) as caught:
        InfluenceConfig(curvature="ekfac")
    message = str(caught.value)
    assert message.startswith("The curvature 'ekfac' is not registered: known are low-rank, kronecker, none.")
    assert "which must call lorif_hf.curvature.register." in message


@pytest.mark.parametrize("base", [Curvature, FirstPass])
def test_bases_are_abstract(base):
    with pytest.raises(TypeError, match="abstract"):
        base()


@dataclass(frozen=True)
class Diagonal(Curvature):
    """The diagonal of the damped Hessian, as a user might write it."""

    damping: float
    first_pass = None
    keeps_rank = False
    name = "diagonal"

    @classmethod
    def from_config(cls, config):
        if config.whitening != "none":
            raise ConfigError("curvature='diagonal' is of gradients as they are: set whitening='none'.")
        return cls(config.damping)

    def cost(self, gradients, max_memory):
        return Cost(stored=4 * gradients.dim, memory=16 * gradients.dim, flops=float(gradients.count * gradients.dim))

    def fit(self, gradients, first, max_memory):
        squares = sum(matrices.double().square().sum(dim=0) for matrices in gradients.matrices()).view(-1)
        diagonal = squares + self.damping * squares.mean()
        influence = torch.cat([(m.double().square() / diagonal).sum(dim=1) for m in gradients.matrices()])
        return Fitted({"diagonal": diagonal.float()}, influence)

    def load(self, stored, entry):
        return {"diagonal": stored.read("diagonal", (entry.d1 * entry.d2,), least=0)}

    def precondition(self, gradients, tensors):
        return gradients / tensors["diagonal"].view(gradients.shape[1:])


@pytest.fixture
def registered(monkeypatch):
    """As long as the test lasts."""
    monkeypatch.setattr(CURVATURES, "_kinds", dict(CURVATURES._kinds))
    assert curvature.register(Diagonal) is Diagonal


def test_a_curvature_of_ones_own_goes_through_build_file_and_query(tmp_path, registered):
    config = plain_config(
        curvature="diagonal", projection_factor=1, factor_rank=None, dtype="float32", shard_size=5, damping=0.3
    )
    model, rows = make_task("causal-lm", 12)
    built = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    assert built.manifest.extensions == {"diagonal": __name__}
    index = InfluenceIndex.from_pretrained(tmp_path / "index")
    index.verify()
    scores = index.scores(model, rows.select([2, 7]))
    dense = gradients(make_task("causal-lm", 1)[0], rows, [module.name for module in index.manifest.modules])
    expected, influence = torch.zeros(2, 12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    for gradient in dense.values():
        g = gradient.flatten(1)
        diagonal = (g.T @ g).diagonal()
        inverse = torch.diag(1 / (diagonal + 0.3 * diagonal.mean()))
        expected += g[[2, 7]] @ inverse @ g.T
        influence += (g @ inverse @ g.T).diagonal()
    assert off(scores, expected) < 1e-4 and off(index.self_influence(), influence) < 1e-4


def test_its_config_is_checked_by_itself(registered):
    with pytest.raises(ConfigError, match="^curvature='diagonal' is of gradients as they are"):
        InfluenceConfig(curvature="diagonal")


def test_an_index_of_a_curvature_that_nobody_registered_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CURVATURES, "_kinds", dict(CURVATURES._kinds))
        curvature.register(Diagonal)
        model, rows = make_task("causal-lm", 4)
        InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config(curvature="diagonal"))
    with pytest.raises(IndexFormatError, match="The curvature 'diagonal' is not registered") as caught:
        InfluenceIndex.from_pretrained(tmp_path / "index")
    assert f"import {__name__} first" in str(caught.value)

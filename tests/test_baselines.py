"""The methods that ours is measured against, each against its paper's formula with dense matrices in float64."""

import pytest
import torch
from dense import (
    damped_inverse,
    doubts,
    global_matrix,
    gradients,
    make_task,
    minus_margin,
    off,
    two_sided,
)
from tiny import plain_config

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import ObjectiveError, QueryError


QUERIES = [0, 3, 7]
both_tasks = pytest.mark.parametrize("kind", ["causal-lm", "classifier"])


def built(kind, count, folder, config):
    """The index, its scores of three training rows, and the rows."""
    model, rows = make_task(kind, count)
    index = InfluenceIndex.build(model, rows, folder, config=config)
    return index, index.scores(model, rows.select(QUERIES)), rows


def fresh(kind):
    return make_task(kind, 1)[0]


@both_tasks
@pytest.mark.parametrize(("count", "factor"), [(50, 4), (12, 2)], ids=["N above D", "N below D"])
def test_logra_is_the_dense_inverse_of_each_projected_layer(tmp_path, kind, count, factor):
    config = InfluenceConfig.logra(dtype="float32", projection_factor=factor, shard_size=9)
    index, scores, rows = built(kind, count, tmp_path / "index", config)
    modules = index.manifest.modules
    assert all((module.d1 * module.d2 > count) == (count == 12) for module in modules)
    dense = gradients(fresh(kind), rows, [module.name for module in modules])
    expected, own = torch.zeros(3, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for module in modules:
        g = two_sided(module, dense[module.name]).flatten(1)
        inverse = damped_inverse(g, 0.1)
        expected += g[QUERIES] @ inverse @ g.T
        own += (g @ inverse * g).sum(dim=1)
    assert off(scores, expected) < 1e-4
    assert off(index.self_influence(), own) < 1e-4


@both_tasks
@pytest.mark.parametrize(("count", "target"), [(50, 24), (20, 96)], ids=["N above D", "N below D"])
def test_trak_is_the_papers_formula_with_an_explicit_projection(tmp_path, kind, count, target):
    config = InfluenceConfig.trak(projection_dim=target, dtype="float32", shard_size=9)
    index, scores, rows = built(kind, count, tmp_path / "index", config)
    modules = index.manifest.modules
    dense = gradients(fresh(kind), rows, [module.name for module in modules], minus_margin)
    whole = torch.cat([dense[module.name].flatten(1) for module in modules], dim=1)
    phi = whole @ global_matrix(modules, target)
    inverse, weights = damped_inverse(phi, 1e-4), doubts(fresh(kind), rows)
    assert 0 < float(weights.min()) < float(weights.max()) < 1 and float(weights.std()) > 1e-4
    expected = phi[QUERIES] @ inverse @ phi.T * weights
    assert off(scores, expected) < 2e-3
    own = (phi @ inverse * phi).sum(dim=1) * weights
    assert off(index.self_influence(), own) < 2e-3


@both_tasks
def test_the_dot_product_of_projected_gradients(tmp_path, kind):
    config = InfluenceConfig.grad_dot(dtype="float32", projection_factor=2, shard_size=9)
    index, scores, rows = built(kind, 20, tmp_path / "index", config)
    modules = index.manifest.modules
    dense = gradients(fresh(kind), rows, [module.name for module in modules])
    whole = torch.cat([two_sided(module, dense[module.name]).flatten(1) for module in modules], dim=1)
    assert off(scores, whole[QUERIES] @ whole.T) < 1e-5
    assert off(index.self_influence(), whole.square().sum(dim=1)) < 1e-5


@both_tasks
@pytest.mark.parametrize("factor", [1, 4])
def test_the_cosine_is_over_all_layers_together(tmp_path, kind, factor):
    config = InfluenceConfig.grad_cos(dtype="float32", projection_factor=factor, shard_size=9)
    index, scores, rows = built(kind, 20, tmp_path / "index", config)
    modules = index.manifest.modules
    dense = gradients(fresh(kind), rows, [module.name for module in modules])
    parts = {module.name: two_sided(module, dense[module.name]).flatten(1) for module in modules}
    norms = torch.cat(list(parts.values()), dim=1).norm(dim=1, keepdim=True)
    parts = {name: part / norms for name, part in parts.items()}
    expected = sum(part[QUERIES] @ part.T for part in parts.values())
    assert off(scores, expected) < 1e-5
    assert torch.allclose(scores[range(3), QUERIES], torch.ones(3), atol=1e-5)
    assert torch.allclose(index.self_influence(), torch.ones(20, dtype=torch.float64), atol=1e-5)
    # Some layers alone: the norm is still that over all layers.
    model = fresh(kind)
    chosen = index.scores(model, rows.select(QUERIES), modules=["mlp.c_fc"])
    expected = sum(part[QUERIES] @ part.T for name, part in parts.items() if name.endswith("mlp.c_fc"))
    assert off(chosen, expected) < 1e-5


PRESETS = {
    "paper": InfluenceConfig.paper(),
    "logra": InfluenceConfig.logra(),
    "trak": InfluenceConfig.trak(projection_dim=64),
    "grad_cos": InfluenceConfig.grad_cos(),
    "default": plain_config(),
    "whitened": plain_config(projection_factor=2, factor_rank=4, bits=4, whitening="kronecker", curvature="kronecker"),
    "one bit": plain_config(projection_factor=1, factor_rank=8, bits=1, whitening="kronecker", curvature="kronecker"),
}


@both_tasks
@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_an_example_is_its_own_first_proponent(tmp_path, kind, config):
    model, rows = make_task(kind, 30)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    found = index.attribute(model, rows.select([4, 11, 23]), top_k=1)
    assert found.indices[:, 0].tolist() == [4, 11, 23]
    assert bool((found.scores > 0).all())


def test_an_examples_dot_product_with_itself_is_positive(tmp_path):
    """Without a curvature a long row outscores others: only the sign is certain."""
    model, rows = make_task("causal-lm", 20)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=InfluenceConfig.grad_dot())
    assert bool((index.scores(model, rows).diagonal() > 0).all())


def test_a_global_projection_has_one_gradient_for_all_layers(tmp_path):
    model, rows = make_task("causal-lm", 12)
    config = InfluenceConfig.trak(projection_dim=16, dtype="float32", shard_size=5)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    parts = index.scores(model, rows.select([2]), per_module=True)
    assert list(parts) == ["all-layers"] and len(index.manifest.modules) == 8
    assert torch.equal(parts["all-layers"], index.scores(model, rows.select([2])))
    with pytest.raises(QueryError, match=r"projects all layers together \(projection_dim\): .* no single modules"):
        index.scores(model, rows.select([2]), modules=["mlp.c_fc"])


def test_a_margin_needs_classes(tmp_path):
    model, rows = make_task("causal-lm", 6)

    def objective(model, batch):
        return model(input_ids=batch["input_ids"]).logits.square().mean(dim=(1, 2))

    with pytest.raises(ObjectiveError, match=r"Objective 'custom' has no margin: .* Use output='loss'\."):
        InfluenceIndex.build(model, rows, tmp_path / "index", config=InfluenceConfig.trak(), objective=objective)

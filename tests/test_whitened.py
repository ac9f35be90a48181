"""Whitened indices against the Kronecker curvature by explicit token sums and inverses in float64."""

import pytest
import torch
from dense import damped_inverse, gradients, loss, make_task, off, predictions, two_sided
from projections import rademacher
from tiny import plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.algebra.factors import factorize, reconstruct
from lorif_hf.algebra.whitening import damped_whitener
from lorif_hf.errors import RecordingError
from lorif_hf.storage.files import TensorFile
from lorif_hf.tasks import CausalLM


QUERIES = [0, 3, 7]
KRONECKER = {"whitening": "kronecker", "curvature": "kronecker", "dtype": "float32", "shard_size": 9}
both_tasks = pytest.mark.parametrize("kind", ["causal-lm", "classifier"])


def projected(module, vectors, side):
    size, target = (module.in_features, module.d1) if side == "in" else (module.out_features, module.d2)
    if size == target:
        return vectors
    return vectors @ rademacher(size, target, seed=0, name=f"{module.name}/{side}").double()


def moments(model, rows, modules, count):
    """Per module A' and S', in float64, of `count` evenly spaced rows: one row, one layer after the other."""
    model, seen = model.double(), {}
    layers = dict(model.named_modules())
    for module in modules:
        layers[module.name].register_forward_hook(
            lambda layer, inputs, output, name=module.name: seen.update({name: (inputs[0].detach(), output)})
        )
    sums = {module.name: [0, 0, 0] for module in modules}
    for number in range(count):
        value = loss(*predictions(model, rows[number * len(rows) // count]))
        outputs = torch.autograd.grad(value, [seen[module.name][1] for module in modules])
        for module, dy in zip(modules, outputs, strict=True):
            for x, y in zip(seen[module.name][0].flatten(0, -2), dy.flatten(0, -2), strict=True):
                if bool((y != 0).any()):
                    x, y = projected(module, x, "in"), projected(module, y, "out")
                    sums[module.name][0] += torch.outer(x, x)
                    sums[module.name][1] += torch.outer(y, y)
                    sums[module.name][2] += 1
    return {name: (a / tokens, s * len(rows) / count) for name, (a, s, tokens) in sums.items()}


def damped(moment, damping):
    return moment + damping * moment.trace() / len(moment) * torch.eye(len(moment), dtype=moment.dtype)


def root(moment):
    """Inverse square root by the singular values."""
    u, s, _ = torch.linalg.svd(moment)
    return u @ torch.diag(s**-0.5) @ u.T


def built(kind, count, folder, config):
    model, rows = make_task(kind, count)
    index = InfluenceIndex.build(model, rows, folder, config=config)
    scores = index.scores(model, rows.select(QUERIES))
    modules = index.manifest.modules
    dense = gradients(make_task(kind, 1)[0], rows, [module.name for module in modules])
    dense = {module.name: two_sided(module, dense[module.name]) for module in modules}
    sampled = min(config.whitening_samples, count)
    return index, scores, dense, moments(make_task(kind, 1)[0], rows, modules, sampled)


@both_tasks
@pytest.mark.parametrize(
    "choices",
    [
        {"projection_factor": 1, "factor_rank": 12},
        {"projection_factor": 1, "factor_rank": None, "whitening_damping": 1e-2},
        {"projection_factor": 2, "factor_rank": None, "whitening_samples": 7},
        {"projection_factor": 4, "factor_rank": 3, "whitening_samples": 1},
    ],
    ids=str,
)
def test_full_rank_scores_are_those_of_kfac(tmp_path, kind, choices):
    """vec(G_q)^T (A' (x) S')^-1 vec(G_i), by the inverse of the D x D product."""
    config = plain_config(**{**KRONECKER, "bits": 16, "factorize_query": False, **choices})
    index, scores, dense, sides = built(kind, 20, tmp_path / "index", config)
    expected, own = torch.zeros(3, 20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)
    for name, (a, s) in sides.items():
        kronecker = torch.kron(damped(a, config.whitening_damping), damped(s, config.whitening_damping))
        g = dense[name].flatten(1)
        solved = torch.linalg.solve(kronecker, g.T)
        expected += g[QUERIES] @ solved
        own += (g * solved.T).sum(dim=1)
    assert off(scores, expected) < 1e-4
    assert off(index.self_influence(), own) < 1e-4


@both_tasks
def test_truncation_is_in_the_whitened_metric(tmp_path, kind):
    config = plain_config(**KRONECKER, projection_factor=1, factor_rank=2, bits=16)
    _, scores, dense, sides = built(kind, 20, tmp_path / "index", config)
    expected = torch.zeros(3, 20, dtype=torch.float64)
    for name, (a, s) in sides.items():
        # Power iteration that has not converged depends on the basis: here it must be the library's own.
        left, right = (damped_whitener(moment, 0.1).double() for moment in (a, s))
        whitened = left.T @ dense[name] @ right
        expected += whitened[QUERIES].flatten(1) @ reconstruct(*factorize(whitened, 2)).flatten(1).T
    assert off(scores, expected) < 1e-3


@both_tasks
def test_a_low_rank_curvature_of_whitened_gradients(tmp_path, kind):
    choices = {**KRONECKER, "curvature": "low-rank", "curvature_rank": None, "damping": 0.3}
    config = plain_config(**choices, projection_factor=2, factor_rank=None, bits=16, factorize_query=False)
    index, scores, dense, sides = built(kind, 20, tmp_path / "index", config)
    expected, own = torch.zeros(3, 20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)
    for name, (a, s) in sides.items():
        g = (root(damped(a, 0.1)) @ dense[name] @ root(damped(s, 0.1))).flatten(1)
        inverse = damped_inverse(g, 0.3)
        expected += g[QUERIES] @ inverse @ g.T
        own += (g @ inverse * g).sum(dim=1)
    assert off(scores, expected) < 1e-3
    assert off(index.self_influence(), own) < 1e-3


def test_whitening_moments_do_not_depend_on_padding(tmp_path):
    """One batch of rows of all lengths, or one row at a time, which has no padding."""
    model, rows = make_task("causal-lm", 12)
    config = plain_config(**KRONECKER, projection_factor=2, factor_rank=None, bits=16)
    kept = []
    for size in (1, 12):
        index = InfluenceIndex.build(model, rows, tmp_path / f"{size}", config=config, batch_size=size)
        kept.append(TensorFile(index.path, index.manifest.curvature))
    alone, together = kept
    assert len(alone.spans) == 2 * len(index.manifest.modules) and set(alone.spans) == set(together.spans)
    for name in alone.spans:
        assert off(alone.read(name), together.read(name).double()) < 1e-5


def constant(value):
    """An objective that is `value` times the model's own, whatever the labels."""

    def objective(model, batch):
        return value * CausalLM().losses(model, batch | {"labels": batch["input_ids"]})

    return objective


def test_a_second_moment_that_overflows_is_an_error_that_names_the_module(tmp_path):
    model, rows = make_task("causal-lm", 6)
    message = (
        r"Module 'transformer.h.0.attn.c_attn' cannot be whitened \(a second moment is not finite\): its inputs or "
        r"gradients are too large. Leave it out with exclude_modules, or set whitening='none'."
    )
    with pytest.raises(RecordingError, match=message):
        InfluenceIndex.build(
            model, rows, tmp_path / "index", config=plain_config(**KRONECKER), objective=constant(1e30)
        )


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-12])
@pytest.mark.parametrize("bits", [16, 1])
def test_gradients_that_vanish_are_never_nan(tmp_path, value, bits):
    model, rows = make_task("causal-lm", 6)
    config = plain_config(whitening="kronecker", curvature="kronecker", bits=bits, projection_factor=2)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config, objective=constant(value))
    scores = index.scores(model, rows, objective=constant(value))
    assert bool(scores.isfinite().all()) and bool(index.self_influence().isfinite().all())
    if value == 0:
        assert float(scores.abs().max()) == 0
    if value == 1e-12:
        # Nothing of the unit is left: the query's and the training side's cancel the curvature's.
        usual = InfluenceIndex.build(model, rows, tmp_path / "usual", config=config, objective=constant(1.0))
        assert off(scores, usual.scores(model, rows, objective=constant(1.0)).double()) < 1e-2

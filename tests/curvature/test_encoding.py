"""What happens to gradients before they are stored or preconditioned, with explicit matrices in float64."""

from dataclasses import replace

import pytest
import torch
from dense import global_matrix, off
from tiny import make_gpt2

from lorif_hf import InfluenceConfig
from lorif_hf.algebra.matrices import dense
from lorif_hf.curvature.encoding import (
    GLOBAL,
    Encoder,
    bytes_per_example,
    checked_projection,
    draw_projection,
    stored_entries,
)
from lorif_hf.errors import IndexCorruptedError, ModelMismatchError
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.storage.layout import ModuleEntry


def entries(config):
    """Of a tiny GPT-2: 8 layers."""
    found = []
    for tracked in tracked_modules(make_gpt2(), "all-linear", None):
        shape = tracked.matrix_shape
        found.append(ModuleEntry(tracked.name, tracked.kind.name, *shape, *config.projected_shape(*shape), ""))
    return found


def gradients(modules, count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {module.name: torch.randn(count, module.d1, module.d2, generator=generator) for module in modules}


PAPER, TRAK = InfluenceConfig.paper(), InfluenceConfig.trak(projection_dim=32)
COSINE = InfluenceConfig.grad_cos(projection_factor=2)


def test_gradients_pass_as_they_are_where_nothing_is_to_be_done():
    modules = entries(PAPER)
    given = gradients(modules)
    found = Encoder(PAPER, modules, {}).encode(given)
    assert list(found) == list(given) and all(torch.equal(found[name], given[name]) for name in given)


def test_a_global_projection_is_that_of_the_gradients_side_by_side():
    modules = entries(TRAK)
    given = gradients(modules)
    found = Encoder(TRAK, modules, {}).encode(given)
    assert list(found) == [GLOBAL] and found[GLOBAL].shape == (5, 32, 1) and found[GLOBAL].dtype == torch.float32
    whole = torch.cat([given[module.name].flatten(1) for module in modules], dim=1).double()
    assert off(found[GLOBAL][:, :, 0], whole @ global_matrix(modules, 32)) < 1e-6


def test_each_layer_has_a_sketch_of_its_own():
    """Two layers of one shape with the same gradient do not add up to twice one sketch."""
    modules = [module for module in entries(TRAK) if module.name.endswith("mlp.c_fc")]
    one = gradients(modules)[modules[0].name]
    encoder = Encoder(TRAK, modules, {})
    zero = torch.zeros_like(one)
    first, second = (
        encoder.encode({modules[0].name: a, modules[1].name: b})[GLOBAL] for a, b in ((one, zero), (zero, one))
    )
    assert off(first, second.double()) > 0.5


def test_normalised_gradients_have_norm_one_over_all_layers():
    modules = entries(COSINE)
    given = gradients(modules)
    found = Encoder(COSINE, modules, {}).encode(given)
    norms = torch.cat([given[module.name].flatten(1) for module in modules], dim=1).double().norm(dim=1)
    for name, gradient in found.items():
        assert off(gradient, given[name] / norms.view(-1, 1, 1)) < 1e-6


def test_an_example_without_a_gradient_stays_zero_and_spoils_no_other():
    modules = entries(COSINE)
    given = gradients(modules)
    for gradient in given.values():
        gradient[2] = 0
    found = torch.cat([one.flatten(1) for one in Encoder(COSINE, modules, {}).encode(given).values()], dim=1)
    assert found[2].abs().max() == 0 and torch.allclose(found.norm(dim=1)[[0, 1, 3, 4]], torch.ones(4))


def test_a_global_projection_is_normalised_after_it_is_made():
    config = InfluenceConfig.trak(projection_dim=32, normalize=True)
    modules = entries(config)
    found = Encoder(config, modules, {}).encode(gradients(modules))[GLOBAL]
    assert torch.allclose(found.flatten(1).norm(dim=1), torch.ones(5))


def test_gradients_are_whitened_from_both_sides_after_they_are_normalised():
    config = InfluenceConfig.paper(whitening="kronecker", normalize=True)
    modules = entries(config)
    generator = torch.Generator().manual_seed(1)
    whiteners = {
        module.name: {
            f"{side}_whitener": torch.randn(size, size, generator=generator)
            for side, size in (("in", module.d1), ("out", module.d2))
        }
        for module in modules
    }
    given = gradients(modules)
    found = Encoder(config, modules, whiteners).encode(given)
    norms = torch.cat([given[module.name].flatten(1) for module in modules], dim=1).double().norm(dim=1)
    for name, sides in whiteners.items():
        left, right = sides["in_whitener"], sides["out_whitener"]
        assert (
            off(found[name], left.double().T @ (given[name].double() / norms.view(-1, 1, 1)) @ right.double()) < 1e-5
        )


@pytest.mark.parametrize("config", [PAPER, TRAK], ids=["paper", "trak"])
def test_half_precision_gradients_come_out_as_float32(config):
    modules = entries(config)
    found = Encoder(config, modules, {}).encode({name: g.bfloat16() for name, g in gradients(modules).items()})
    assert all(gradient.dtype == torch.float32 for gradient in found.values())


def test_stored_entries_are_the_layers_or_the_one_that_stands_for_all():
    modules = entries(PAPER)
    assert stored_entries(PAPER, modules) == modules
    whole = sum(module.d1 * module.d2 for module in modules)
    assert stored_entries(TRAK, modules) == [ModuleEntry(GLOBAL, "global", whole, 1, 32, 1, "")]


@pytest.mark.parametrize(
    "config, expected",
    [
        (InfluenceConfig.paper(), 2 * 2 * (3 + 9 + 3 + 3 + 3 + 12 + 12 + 3)),
        (InfluenceConfig.logra(), 2 * 2 * (27 + 9 + 36 + 36)),
        (InfluenceConfig.trak(projection_dim=100, dtype="float32"), 4 * 100 + 4),
        (InfluenceConfig.paper(projection_factor=1, bits=1), 2 * (2 + 5 + 2 + 2 + 2 + 6 + 6 + 2 + 4 * 2)),
    ],
    ids=["paper", "logra", "trak", "one bit"],
)
def test_bytes_of_an_example_over_all_layers(config, expected):
    assert bytes_per_example(config, entries(config)) == expected


@pytest.mark.parametrize("config", [PAPER, TRAK], ids=["paper", "trak"])
def test_the_hash_is_of_all_that_is_drawn_for_a_layer(config):
    module = entries(config)[0]
    sha256 = draw_projection(module, config)[1]
    assert draw_projection(module, config)[1] == sha256
    changes = [{"seed": 1}]
    if config is TRAK:
        changes.append({"projection_dim": 33})
    for change in changes:
        other = InfluenceConfig.from_dict({**config.to_dict(), **change})
        assert draw_projection(module, other)[1] != sha256
    good = replace(module, projection_sha256=sha256)
    assert checked_projection(good, config).sha256() == draw_projection(module, config)[0].sha256()
    with pytest.raises(ModelMismatchError, match=f"made with another projection of module '{module.name}'"):
        checked_projection(module, config)


@pytest.mark.parametrize(
    "d1, d2, rank, found",
    [(2, 9, 1, "2 x 9"), (3, 10, 1, "3 x 10"), (3, 9, 4, "3 x 9"), (12, 36, 1, "12 x 36"), (3, 9, 10**30, "3 x 9")],
)
def test_a_layer_that_its_config_does_not_allow_is_refused(d1, d2, rank, found):
    config = InfluenceConfig.paper(factor_rank=rank)
    module = ModuleEntry("layer", "linear", 12, 36, d1, d2, "")
    message = rf"module 'layer' is {found}; its config makes it 3 x 9, at rank {rank}"
    with pytest.raises(IndexCorruptedError, match=message):
        checked_projection(module, config)


def test_queries_made_of_their_tokens_are_not_whitened_again():
    config = InfluenceConfig.paper(whitening="kronecker")
    modules, generator = entries(config), torch.Generator().manual_seed(2)
    sides = {
        m.name: {f"{s}_whitener": torch.randn(d, d, generator=generator) for s, d in (("in", m.d1), ("out", m.d2))}
        for m in modules
    }
    encoder = Encoder(config, modules, sides)
    reductions = encoder.query_reductions()
    assert list(reductions) == [module.name for module in modules]
    for tokens in (2, 90):  # products, and formed
        given = {m.name: [torch.randn(3, tokens, d, generator=generator) for d in (m.d1, m.d2)] for m in modules}
        made = encoder.encode({name: reductions[name](*pair) for name, pair in given.items()}, reductions)
        expected = encoder.encode({name: x.mT @ dy for name, (x, dy) in given.items()})
        for name, whitened in expected.items():
            assert off(dense(made[name]), whitened.double()) < 1e-5
    for other in (InfluenceConfig.paper(normalize=True), TRAK):
        assert Encoder(other, modules, {}).query_reductions() == {}

"""Sides that are mostly zeros: whatever is done with them equals the same with the vectors that they stand for."""

import pytest
import torch
from fake_device import DEVICE, FakeDevice, on_host

from lorif_hf.algebra.projection import BlockSigns, draw_signs, project
from lorif_hf.algebra.sides import Blocks, OneHot, as_vectors, cast_side, cat_tokens, project_side, scale_side, side_on


@pytest.fixture(params=["vectors", "one-hot", "scaled", "blocks"])
def side(request):
    """(3, 4, 12) of float64."""
    generator = torch.Generator().manual_seed(0)
    if request.param == "vectors":
        return torch.randn(3, 4, 12, generator=generator, dtype=torch.float64)
    if request.param in ("one-hot", "scaled"):
        values = torch.randn(3, 4, generator=generator) if request.param == "scaled" else None
        return OneHot(torch.randint(-1, 12, (3, 4), generator=generator), 12, torch.float64, values)
    values = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    return Blocks(values, torch.randint(0, 4, (3, 4), generator=generator), 4)


def test_what_they_stand_for():
    assert as_vectors(OneHot(torch.tensor([[2, -1]]), 3, torch.float32)).tolist() == [[[0, 0, 1], [0, 0, 0]]]
    blocks = Blocks(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[1, 0]]), 2)
    assert as_vectors(blocks).tolist() == [[[0, 0, 1, 2], [3, 4, 0, 0]]]


@pytest.mark.parametrize("target", [1, 5, 12])
def test_projected(side, target):
    vectors = as_vectors(side)
    assert tuple(side.shape) == vectors.shape == (3, 4, 12) and side.dtype == vectors.dtype
    signs = draw_signs((12, target), seed=0, name="layer/in").double()
    torch.testing.assert_close(project_side(side, signs), project(vectors, signs))
    torch.testing.assert_close(project_side(side, None), vectors)


@pytest.mark.parametrize("target", [1, 2, 3])
def test_blocks_projected_block_by_block(target):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    side = Blocks(values, torch.randint(0, 4, (3, 4), generator=generator), 4)
    signs = BlockSigns.draw(4, 3, target, seed=0, name="layer/out").to(torch.device("cpu"), torch.float64)
    torch.testing.assert_close(project_side(side, signs), project(as_vectors(side), signs))
    torch.testing.assert_close(project_side(as_vectors(side), signs), project(as_vectors(side), signs))


def test_without_a_token(side):
    none = OneHot(torch.zeros(3, 0, dtype=torch.int64), 12, torch.float32)
    signs = draw_signs((12, 5), seed=0, name="layer/in").float()
    assert project_side(none, signs).shape == (3, 0, 5) and as_vectors(none).shape == (3, 0, 12)
    empty = Blocks(torch.zeros(3, 0, 3), torch.zeros(3, 0, dtype=torch.int64), 4)
    assert project_side(empty, signs).shape == (3, 0, 5)


def test_in_another_dtype(side):
    cast = cast_side(side, torch.float32)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(as_vectors(cast), as_vectors(side).float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scaled(side, dtype):
    scale, side = torch.rand(12) + 0.5, cast_side(side, dtype)
    scaled = scale_side(side, scale)
    assert type(scaled) is type(side) and scaled.dtype == torch.promote_types(dtype, torch.float32)
    close = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(as_vectors(scaled), as_vectors(side) * scale, **close)
    signs = draw_signs((12, 5), seed=0, name="layer/in").to(scaled.dtype)
    torch.testing.assert_close(project_side(scaled, signs), project(as_vectors(side) * scale, signs), **close)


def test_tokens_of_several_calls(side):
    both = cat_tokens([side, side])
    assert type(both) is (
        type(side) if getattr(side, "values", None) is None or isinstance(side, Blocks) else torch.Tensor
    )
    torch.testing.assert_close(as_vectors(both), torch.cat([as_vectors(side)] * 2, dim=1))
    mixed = cat_tokens([side, as_vectors(side)])
    torch.testing.assert_close(mixed, as_vectors(both))
    assert cat_tokens([side]) is side


def test_a_side_moves_with_all_its_parts():
    ids, values = torch.tensor([[0, 2], [1, -1]]), torch.randn(2, 2)
    sides = [
        torch.randn(2, 2, 4),
        OneHot(ids, 4, torch.float32),
        OneHot(ids, 4, torch.float32, values),
        Blocks(torch.randn(2, 2, 3), ids.clamp_min(0), 3),
    ]
    with FakeDevice() as fake:
        for side in sides:
            there = side_on(side, DEVICE)
            assert there.device == DEVICE and there.shape == side.shape and there.dtype == side.dtype
            assert torch.equal(on_host(as_vectors(there)), as_vectors(side))
            crossed = len(fake.crossings)
            assert side_on(there, DEVICE) is there and len(fake.crossings) == crossed

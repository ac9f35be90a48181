"""Levels, bytes and scales against loops over single numbers."""

import math

import numpy as np
import pytest
import torch

from lorif_hf.algebra.matrices import LowRankMatrices
from lorif_hf.algebra.quantization import (
    _ROUNDS,
    _STEPS,
    BITS,
    captured_shares,
    fitted_scales,
    pack,
    packed_bytes,
    quantize,
    quantized_factors,
    unpack,
)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def levels_of(codes, bits):
    """What codes 0 to 2^bits - 1 stand for."""
    return 2.0 * codes - (2**bits - 1)


def scales_of(matrices, left, right):
    """The scales that fit best to known matrices."""
    return fitted_scales(left, right, ((matrices @ right) * left).sum(dim=1))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 9, 16, 17, 31, 100])
def test_what_is_packed_comes_back(bits, length):
    generator = torch.Generator().manual_seed(length)
    levels = levels_of(torch.randint(0, 1 << bits, (5, length, 3), generator=generator), bits)
    packed = pack(levels, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (5, 3, packed_bytes(length, bits))
    unpacked = unpack(packed, length, bits)
    assert unpacked.dtype == torch.float32
    assert torch.equal(unpacked, levels.mT)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_comes_back_at_every_position(bits):
    per_byte = 8 // bits
    codes = torch.zeros((1 << bits) * per_byte, per_byte, 1)
    for code in range(1 << bits):
        for position in range(per_byte):
            codes[code * per_byte + position, position] = code
    levels = levels_of(codes, bits)
    assert torch.equal(unpack(pack(levels, bits), per_byte, bits), levels.mT)


@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_those_of_a_loop_with_the_first_code_lowest(bits):
    codes = torch.randint(0, 1 << bits, (2, 11, 2), generator=torch.Generator().manual_seed(1))
    packed = pack(levels_of(codes, bits), bits)
    for example in range(2):
        for vector in range(2):
            number = sum(int(code) << (bits * position) for position, code in enumerate(codes[example, :, vector]))
            expected = number.to_bytes(packed_bytes(11, bits), "little")
            assert packed[example, vector].numpy().tobytes() == expected


@pytest.mark.parametrize("bits", BITS)
def test_no_vector_or_no_number_is_packed_too(bits):
    assert pack(torch.zeros(0, 9, 2), bits).shape == (0, 2, packed_bytes(9, bits))
    assert unpack(torch.zeros(0, 2, packed_bytes(9, bits), dtype=torch.uint8), 9, bits).shape == (0, 2, 9)


@pytest.mark.parametrize("length, bits, expected", [(1, 1, 1), (8, 1, 1), (9, 1, 2), (7, 4, 4), (3, 8, 3), (5, 2, 2)])
def test_a_vector_ends_on_a_byte(length, bits, expected):
    assert packed_bytes(length, bits) == expected


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
@pytest.mark.parametrize("bits", BITS)
def test_levels_are_those_of_a_loop(bits, scale):
    vectors = random(4, 9, 3, seed=bits, dtype=torch.float64) * scale
    vectors[1, :, 1] = 0
    found = quantize(vectors, bits)
    half = 2 ** (bits - 1)
    for example in range(4):
        for column in range(3):
            vector = vectors[example, :, column].tolist()
            size = math.sqrt(sum(x * x for x in vector) / len(vector))
            for position, x in enumerate(vector):
                cell = math.floor(x / (size * _STEPS[bits])) if size else 0
                assert float(found[example, position, column]) == 2 * min(max(cell, -half), half - 1) + 1


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_the_odd_numbers_around_zero(bits):
    expected = [2.0 * code - (2**bits - 1) for code in range(2**bits)]
    assert quantize(torch.linspace(-1, 1, 100_000).pow(9).view(1, -1, 1), bits).unique().tolist() == expected
    assert sum(expected) == 0


def test_one_bit_is_the_sign():
    vectors = random(3, 20, 2)
    assert torch.equal(quantize(vectors, 1), torch.where(vectors >= 0, 1.0, -1.0))


@pytest.mark.parametrize("bits", BITS)
def test_levels_of_a_vector_do_not_depend_on_its_neighbours_or_its_unit(bits):
    vectors = random(6, 12, 3)
    levels = quantize(vectors, bits)
    assert torch.equal(quantize(vectors[2:3, :, 1:2] * 1024, bits), levels[2:3, :, 1:2])
    vectors[0] *= 1e6
    assert torch.equal(quantize(vectors, bits)[1:], levels[1:])


@pytest.mark.parametrize("bits, share", [(8, 1e-3), (4, 0.0116), (2, 0.1189), (1, 0.3635)])
def test_a_normal_distribution_loses_what_max_published(bits, share):
    """Mean squared error of the best uniform quantiser, Max 1960, table II: 1, 4, 16 (and 256) levels."""
    vectors = random(1, 200_000, 1, seed=3)
    step = _STEPS[bits] * float(vectors.square().mean().sqrt())
    error = (quantize(vectors, bits) * step / 2 - vectors).square().mean() / vectors.square().mean()
    assert float(error) == pytest.approx(share, rel=0.03) if bits < 8 else float(error) < share
    # No other step of the same grid loses much less.
    for other in (0.8, 1.25):
        half = 2 ** (bits - 1)
        cells = ((vectors / (step * other)).floor().clamp(-half, half - 1) + 0.5) * step * other
        assert float((cells - vectors).square().mean() / vectors.square().mean()) > float(error)


def lstsq(matrix, left, right):
    """The scales by numpy's least squares over the flattened outer products, in float64."""
    columns = [np.outer(left[:, j], right[:, j]).ravel() for j in range(left.shape[1])]
    return np.linalg.lstsq(np.stack(columns, axis=1), matrix.ravel(), rcond=None)[0]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_scales_are_those_of_least_squares(bits, rank):
    matrices, left, right = random(6, 7, 9), random(6, 7, rank, seed=1), random(6, 9, rank, seed=2)
    left, right = quantize(left, bits), quantize(right, bits)
    found = scales_of(matrices, left, right)
    assert found.shape == (6, rank) and found.dtype == torch.float32
    for i in range(6):
        a, b, c = (tensor[i].double().numpy() for tensor in (matrices, left, right))
        expected = lstsq(a, b, c)
        # Pairs of one bit may coincide; then the scales are not unique, but what they rebuild is.
        rebuilt, best = ((b * scales) @ c.T for scales in (found[i].double().numpy(), expected))
        assert np.abs(rebuilt - best).max() <= 1e-5 * np.abs(best).max()


@pytest.mark.parametrize("bits", BITS)
def test_pairs_with_the_same_codes_share_a_finite_scale(bits):
    levels = quantize(random(4, 6, 1), bits), quantize(random(4, 8, 1, seed=1), bits)
    matrices = random(4, 6, 8, seed=2)
    alone = scales_of(matrices, *levels)
    twice = scales_of(matrices, *(side.repeat(1, 1, 3) for side in levels))
    assert bool(twice.isfinite().all())
    torch.testing.assert_close(twice.sum(dim=1, keepdim=True), alone, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(twice, (alone / 3).expand(4, 3), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12, 1e30])
def test_scales_of_matrices_of_any_size_are_finite(scale):
    matrices = random(3, 5, 4) * scale
    left, right = (quantize(random(3, d, 3, seed=d), 4) for d in (5, 4))
    found = scales_of(matrices, left, right)
    assert bool(found.isfinite().all())
    expected = scales_of(random(3, 5, 4), left, right) * scale
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def one_after_the_other(matrix, rank, bits):
    """Pairs of codes of one matrix, each fitted to what the earlier ones leave of it, which is formed; float64."""
    starts = torch.randn(matrix.shape[1], rank, generator=torch.Generator().manual_seed(0)).double()
    left_over, pairs = matrix.double().clone(), []

    def coded(vector):
        return quantize(vector.view(1, -1, 1), bits).double().view(-1)

    for j in range(rank):
        right = starts[:, j]
        for _ in range(_ROUNDS):
            image = left_over @ right
            right = left_over.T @ (image / image.norm())
        for _ in range(2):
            left = coded(left_over @ right)
            right = coded(left_over.T @ left)
        pairs.append((left, right))
        left_over -= (left @ left_over @ right) / (left @ left) / (right @ right) * torch.outer(left, right)
    return [torch.stack(side, dim=1) for side in zip(*pairs, strict=True)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rank", [1, 4])
def test_quantised_factors_are_those_of_a_loop_that_forms_what_is_left(bits, rank):
    matrices = random(40, 12, 9, seed=6)
    left, right, scales, _ = quantized_factors(matrices, rank, bits)
    assert left.shape == (40, 12, rank) and right.shape == (40, 9, rank) and left.dtype == right.dtype == torch.float32
    same = 0
    for i in range(40):
        expected = one_after_the_other(matrices[i], rank, bits)
        found = [side[i].double() for side in (left, right)]
        same += all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        best = lstsq(matrices[i].double().numpy(), *(side.numpy() for side in found))
        np.testing.assert_allclose(scales[i].numpy(), best, rtol=1e-4, atol=1e-5 * np.abs(best).max())
    assert same >= 38, "float32 may put a number that lies on an edge into the neighbouring level, in few matrices"


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("bits", BITS)
def test_quantised_factors_do_not_depend_on_the_unit(bits, scale):
    matrices = random(5, 12, 9)
    scale = 2.0 ** round(math.log2(scale))  # exact: nothing is rounded otherwise
    expected, found = quantized_factors(matrices, 3, bits), quantized_factors(matrices * scale, 3, bits)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2] * scale, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["zero", "rank one", "one number", "ones"])
def test_matrices_of_lower_rank_have_finite_scales(bits, kind):
    matrix = torch.zeros(6, 5)
    if kind == "rank one":
        matrix = torch.outer(torch.linspace(-1, 1, 6), torch.linspace(1, 2, 5))
    elif kind == "one number":
        matrix[3, 2] = 1e-3
    elif kind == "ones":
        matrix += 1
    left, right, scales, _ = quantized_factors(matrix.expand(2, -1, -1), 4, bits)
    assert bool(scales.isfinite().all()) and torch.equal(scales[0], scales[1])
    rebuilt = (left * scales.unsqueeze(1)) @ right.mT
    assert float((rebuilt[0] - matrix).norm()) <= float(matrix.norm())
    if kind == "zero":
        assert float(scales.abs().max()) == 0
    elif kind == "ones":
        torch.testing.assert_close(rebuilt[0], matrix, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("kind", ["one number", "rank one", "few"])
def test_pairs_with_the_same_codes_have_scales_that_bfloat16_can_hold(kind, low_rank):
    """Scales of opposite signs that cancel would no longer do so once they are rounded."""
    if kind == "one number":
        matrices = torch.zeros(300, 6, 8)
        matrices[torch.arange(300), torch.arange(300) % 6, torch.arange(300) % 8] = random(300, seed=3)
    elif kind == "rank one":
        matrices = random(300, 6, 1, seed=4) @ random(300, 1, 8, seed=5)
    else:
        matrices = random(300, 4, 4, seed=6)
    left = torch.eye(matrices.shape[1]).expand(300, -1, -1)
    squares = matrices.square().sum(dim=(1, 2)).double()
    given = LowRankMatrices(left, matrices.mT, squares) if low_rank else matrices
    u, v, scales, _ = quantized_factors(given, 4, 1)
    assert float((scales.abs().amax(dim=1) / matrices.abs().amax(dim=(1, 2))).max()) < 4
    found, rounded = ((u * some.unsqueeze(1)) @ v.mT for some in (scales, scales.bfloat16().float()))
    assert float(((found - rounded).norm(dim=(1, 2)) / matrices.norm(dim=(1, 2))).max()) < 0.02


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rank", [1, 4])
def test_shares_are_those_of_the_squared_norm(bits, rank, low_rank):
    """With the scales divided by them, the inner product with the matrix itself is its squared norm."""
    thin = random(30, 12, 5, seed=8), random(30, 9, 5, seed=9)
    matrices = thin[0] @ thin[1].mT * torch.logspace(-8, 8, 30).view(-1, 1, 1)
    squares = matrices.double().square().sum(dim=(1, 2))
    given = LowRankMatrices(thin[0] * torch.logspace(-8, 8, 30).view(-1, 1, 1), thin[1], squares)
    left, right, scales, shares = quantized_factors(given if low_rank else matrices, rank, bits)
    rebuilt = (left * scales.unsqueeze(1)).double() @ right.mT.double()
    expected = rebuilt.square().sum(dim=(1, 2)) / squares
    assert float(expected.min()) > (2 / math.pi) ** 2 * rank / 9 and shares.shape == (30,)
    torch.testing.assert_close(shares.double(), expected, rtol=1e-4, atol=0)
    inner = (rebuilt / shares.view(-1, 1, 1) * matrices).sum(dim=(1, 2))
    torch.testing.assert_close(inner, squares, rtol=1e-4, atol=0)


def test_what_was_cut_away_before_counts_as_lost():
    thin = random(20, 12, 3, seed=8), random(20, 9, 3, seed=9)
    squares = (thin[0] @ thin[1].mT).double().square().sum(dim=(1, 2))
    whole, half = (quantized_factors(LowRankMatrices(*thin, squares * times), 2, 1) for times in (1, 2))
    torch.testing.assert_close(half.shares, whole.shares / 2)
    assert torch.equal(half.left, whole.left)
    torch.testing.assert_close(half.scales, whole.scales)


def test_shares_lie_between_what_signs_hold_of_an_even_matrix_and_all():
    squares = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1e-320], dtype=torch.float64)
    captured = torch.tensor([1e-3, 0.2, 0.9, 1.3, 0.0, 0.0], dtype=torch.float64)
    least = (2 / math.pi) ** 2 / 16
    expected = [least, 0.2, 0.9, 1, least, least]
    assert captured_shares(captured, squares, 1 / 16).tolist() == pytest.approx(expected)
    assert captured_shares(captured, squares, 4.0).tolist() == [1] * 6


def test_a_matrix_that_is_zero_but_for_one_number_keeps_a_scale_of_its_size():
    matrix = torch.zeros(1, 64, 64)
    matrix[0, 3, 5] = 1
    _, _, scales, shares = quantized_factors(matrix, 1, 1)
    assert float(shares) == pytest.approx((2 / math.pi) ** 2 / 64) and float(scales / shares) < 0.05

import hashlib

import pytest
import torch
from projections import rademacher

from lorif_hf.algebra.projection import BlockSigns, SparseProjection, TwoSidedProjection, draw_signs, project


SIGNS = [[1, 1, -1, 1, 1], [-1, 1, 1, -1, -1], [-1, 1, 1, 1, -1], [1, 1, -1, 1, -1]]
COLUMNS, COLUMN_SIGNS = [10, 10, 2, 1, 3, 10, 10, 4], [-1, -1, -1, 1, -1, -1, -1, 1]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("source, target", [(1, 1), (7, 3), (64, 16), (5, 1), (3, 8)])
def test_entries_are_plus_or_minus_one_over_sqrt_of_the_target_dimension(source, target):
    matrix = rademacher(source, target, seed=0, name="layer/in")
    assert matrix.shape == (source, target) and matrix.dtype == torch.float32 and matrix.device.type == "cpu"
    assert torch.equal(matrix.abs(), torch.full((source, target), 1.0).div(target**0.5))


def test_both_signs_occur_about_equally():
    signs = rademacher(400, 100, seed=0, name="layer/in").sign()
    assert abs(float(signs.mean())) < 0.03  # six standard deviations of 40,000 fair signs
    assert float(signs.mean(dim=0).abs().max()) < 0.3 and float(signs.mean(dim=1).abs().max()) < 0.6


def test_the_same_seed_and_name_give_the_same_matrix_whatever_was_drawn_before():
    torch.manual_seed(1)
    first = rademacher(32, 8, seed=3, name="layer/in")
    torch.manual_seed(2)
    torch.randn(100)
    assert torch.equal(rademacher(32, 8, seed=3, name="layer/in"), first)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    rademacher(32, 8, seed=3, name="layer/in")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed, name", [(4, "layer/in"), (3, "layer/out"), (3, "layers/in"), (3, ""), (2**40, "x")])
def test_another_seed_or_name_gives_another_matrix(seed, name):
    reference = rademacher(32, 8, seed=3, name="layer/in")
    agreement = (rademacher(32, 8, seed=seed, name=name) == reference).float().mean()
    assert 0.25 < float(agreement) < 0.75  # independent signs agree half of the time


def test_the_expectation_of_p_times_its_transpose_is_the_identity():
    draws = torch.stack([rademacher(6, 4, seed=seed, name="layer/in").double() for seed in range(2000)])
    mean = (draws @ draws.transpose(1, 2)).mean(dim=0)
    torch.testing.assert_close(mean, torch.eye(6, dtype=torch.float64), atol=0.06, rtol=0)


def bytes_of(seed, name, length):
    """The stream as docs/format.md defines it."""
    return hashlib.shake_128(b"lorif-hf projection 1\0" + str(seed).encode() + b"\0" + name.encode()).digest(length)


def test_signs_are_the_bits_of_the_stream():
    """Without NumPy or torch: any machine and release must draw these."""
    bits = [byte >> place & 1 for byte in bytes_of(7, "layer/in", 3) for place in range(7, -1, -1)][:20]
    rows = [[2 * bit - 1 for bit in bits[start : start + 5]] for start in range(0, 20, 5)]
    assert draw_signs((4, 5), seed=7, name="layer/in").tolist() == rows


def test_columns_are_words_of_the_stream_scaled_to_the_target():
    drawn = SparseProjection.draw(8, 11, seed=7, name="layer/global")
    content = bytes_of(7, "layer/global", 32)
    words = [int.from_bytes(content[start : start + 4], "little") for start in range(0, 32, 4)]
    assert drawn.columns.tolist() == [word * 11 >> 32 for word in words]
    assert torch.equal(drawn.signs, draw_signs((8,), seed=7, name="layer/global/signs"))


def test_draws_are_pinned_since_every_index_depends_on_them():
    assert draw_signs((4, 5), seed=7, name="layer/in").tolist() == SIGNS
    drawn = SparseProjection.draw(8, 11, seed=7, name="layer/global")
    assert (drawn.columns.tolist(), drawn.signs.tolist()) == (COLUMNS, COLUMN_SIGNS)


@pytest.mark.parametrize("shape", [(12,), (1, 12), (0, 12), (5, 12), (2, 3, 12)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_project_equals_the_product_with_the_rademacher_matrix(generator, shape, dtype, tolerance):
    matrix = rademacher(12, 5, seed=0, name="layer/in").double()
    vectors = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    projected = project(vectors, matrix.sign().to(dtype))
    assert projected.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert projected.shape == (*shape[:-1], 5)
    expected = vectors.double() @ (matrix.sign() / 5**0.5)
    torch.testing.assert_close(projected.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype, wide", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_no_signs_mean_no_projection_but_a_wide_dtype(generator, dtype, wide):
    vectors = torch.randn(3, 12, generator=generator).to(dtype)
    assert torch.equal(project(vectors, None), vectors.to(wide)) and project(vectors, None).dtype == wide


def test_projecting_both_sides_equals_projecting_the_weight_gradient(generator):
    inputs = torch.randn(9, 12, generator=generator, dtype=torch.float64)
    output_gradients = torch.randn(9, 8, generator=generator, dtype=torch.float64)
    projection = TwoSidedProjection.draw((12, 8), (3, 2), seed=5, name="layer")
    wide = projection.to(torch.device("cpu"), torch.float64)
    projected = project(inputs, wide.in_signs).T @ project(output_gradients, wide.out_signs)
    p_in = rademacher(12, 3, seed=5, name="layer/in").double().sign() / 3**0.5
    p_out = rademacher(8, 2, seed=5, name="layer/out").double().sign() / 2**0.5
    torch.testing.assert_close(projected, p_in.T @ (inputs.T @ output_gradients) @ p_out)


def test_a_side_that_keeps_its_size_is_not_projected():
    assert TwoSidedProjection.draw((12, 8), (12, 8), seed=0, name="layer") == TwoSidedProjection(None, None)
    only_out = TwoSidedProjection.draw((12, 8), (12, 2), seed=0, name="layer")
    assert only_out.in_signs is None and only_out.out_signs.shape == (8, 2)


def test_the_two_sides_of_a_square_layer_differ():
    projection = TwoSidedProjection.draw((16, 16), (4, 4), seed=0, name="layer")
    assert not torch.equal(projection.in_signs, projection.out_signs)
    assert not torch.equal(projection.in_signs, -projection.out_signs)


def as_matrix(blocks):
    """P of `BlockSigns`, (E w, d), of float64."""
    matrix = torch.zeros(blocks.shape, dtype=torch.float64)
    matrix[torch.arange(len(matrix)), blocks.columns.flatten()] = blocks.signs.flatten().double()
    return matrix


@pytest.mark.parametrize("width", [1, 4, 6])
def test_blocks_are_projected_as_their_matrix_says(generator, width):
    blocks = BlockSigns.draw(3, 6, width, seed=1, name="layer/out")
    matrix = as_matrix(blocks)
    assert blocks.shape == matrix.shape == (18, width) and set(matrix.flatten().tolist()) <= {0.0, 1.0, -1.0}
    for vectors in (torch.randn(2, 5, 18, generator=generator), torch.zeros(0, 18), torch.ones(18)):
        projected = project(vectors.double(), blocks.to(torch.device("cpu"), torch.float64))
        torch.testing.assert_close(projected, vectors.double() @ matrix)
    assert project(torch.ones(18).bfloat16(), blocks.to(torch.device("cpu"), torch.bfloat16)).dtype == torch.float32
    evenly = matrix.abs().unflatten(0, (3, 6)).sum(dim=1)
    assert float(evenly.max() - evenly.min()) <= 1
    torch.testing.assert_close(as_matrix(blocks.of_block(1)), matrix[6:12])


def test_within_a_block_of_full_width_nothing_is_lost_and_between_blocks_nothing_is_added_in_the_mean():
    blocks = [BlockSigns.draw(3, 6, 6, seed=seed, name="layer/out") for seed in range(400)]
    products = torch.stack([as_matrix(block) @ as_matrix(block).T for block in blocks])
    for block in range(3):
        part = slice(6 * block, 6 * block + 6)
        assert torch.equal(products[:, part, part], torch.eye(6).double().expand(400, 6, 6))
    assert float((products.mean(dim=0) - torch.eye(18).double()).abs().max()) < 0.12  # six standard deviations


def test_blocks_are_drawn_from_the_stream():
    drawn = TwoSidedProjection.draw((5, 12), (5, 4), seed=7, name="layer", blocks=3)
    assert drawn.in_signs is None and drawn.projected_shape((5, 12)) == (5, 4)
    assert torch.equal(drawn.out_signs.signs, draw_signs((3, 4), seed=7, name="layer/out"))
    words = [int.from_bytes(bytes_of(7, "layer/out/order", 48)[4 * i : 4 * i + 4], "little") for i in range(12)]
    for block in range(3):
        order = sorted(range(4), key=lambda i: words[4 * block + i])
        assert [int(drawn.out_signs.columns[block, i]) for i in order] == [0, 1, 2, 3]
    hashes = {drawn.sha256()}
    for other in ({"seed": 8}, {"name": "other"}, {"blocks": 2}, {"blocks": 1}):
        hashes.add(
            TwoSidedProjection.draw((5, 12), (5, 4), **{"seed": 7, "name": "layer", "blocks": 3, **other}).sha256()
        )
    flipped = BlockSigns(drawn.out_signs.columns.roll(1, 1), drawn.out_signs.signs, 4)
    assert len(hashes | {TwoSidedProjection(None, flipped).sha256()}) == 6


def test_the_hash_notices_one_other_sign():
    projection = TwoSidedProjection.draw((12, 8), (3, 2), seed=0, name="layer")
    changed = projection.out_signs.clone()
    changed[7, 1] *= -1
    assert TwoSidedProjection(projection.in_signs, changed).sha256() != projection.sha256()


def test_the_hash_tells_sides_shapes_and_the_identity_apart():
    signs = rademacher(8, 8, seed=0, name="layer/in").sign().char()
    projections = [
        TwoSidedProjection(None, None),
        TwoSidedProjection(signs, None),
        TwoSidedProjection(None, signs),
        TwoSidedProjection(signs, signs),
        TwoSidedProjection(signs.reshape(4, 16), None),
        TwoSidedProjection(signs, signs.T.contiguous()),
    ]
    assert len({projection.sha256() for projection in projections}) == len(projections)


def test_the_hash_is_of_the_signs_and_not_of_their_dtype():
    projection = TwoSidedProjection.draw((12, 8), (3, 2), seed=0, name="layer")
    assert projection.to(torch.device("cpu"), torch.float16).sha256() == projection.sha256()
    again = TwoSidedProjection.draw((12, 8), (3, 2), seed=0, name="layer")
    assert again.sha256() == projection.sha256()
    other = TwoSidedProjection.draw((12, 8), (3, 2), seed=1, name="layer")
    assert other.sha256() != projection.sha256()


def dense(sparse):
    """P (source, target) with its zeros, one entry at a time, float64."""
    matrix = torch.zeros(len(sparse.columns), sparse.target_dim, dtype=torch.float64)
    for row, (column, sign) in enumerate(zip(sparse.columns.tolist(), sparse.signs.tolist(), strict=True)):
        matrix[row, column] = sign
    return matrix


@pytest.mark.parametrize("count, source, target", [(5, 40, 8), (1, 7, 1), (0, 6, 3), (3, 4, 50), (2, 1, 1)])
def test_a_sparse_projection_is_that_of_its_dense_matrix(generator, count, source, target):
    sparse = SparseProjection.draw(source, target, seed=1, name="layer")
    matrix = dense(sparse)
    assert torch.equal(matrix.abs().sum(dim=1), torch.ones(source, dtype=torch.float64)), "one entry in each row"
    vectors = torch.randn(count, source, generator=generator)
    found = sparse.project(vectors)
    assert found.dtype == torch.float32 and found.shape == (count, target)
    torch.testing.assert_close(found.double(), vectors.double() @ matrix, rtol=1e-5, atol=1e-5)


def test_sparse_inner_products_are_right_in_the_mean(generator):
    x, y = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    found = []
    for seed in range(3000):
        sparse = SparseProjection.draw(30, 8, seed=seed, name="layer")
        found.append(float((sparse.project(x[None]) * sparse.project(y[None])).sum()))
    found = torch.tensor(found, dtype=torch.float64)
    # Charikar et al.: the variance is at most (|x|^2 |y|^2 + <x, y>^2) / target.
    bound = float(x @ x * (y @ y) + (x @ y) ** 2) / 8
    assert float(found.var()) < 1.1 * bound
    assert abs(float(found.mean() - x @ y)) < 5 * (bound / 3000) ** 0.5


def test_sparse_columns_and_signs_are_drawn_evenly():
    sparse = SparseProjection.draw(40_000, 16, seed=0, name="layer")
    counts = torch.bincount(sparse.columns, minlength=16)
    assert len(counts) == 16 and bool((counts - 2500).abs().max() < 300)  # six standard deviations
    assert set(sparse.signs.unique().tolist()) == {-1, 1} and abs(float(sparse.signs.float().mean())) < 0.03


def test_a_sparse_draw_depends_on_seed_and_name_alone():
    before = torch.get_rng_state()
    one = SparseProjection.draw(64, 16, seed=3, name="a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again = SparseProjection.draw(64, 16, seed=3, name="a")
    assert torch.equal(one.columns, again.columns) and torch.equal(one.signs, again.signs)
    drawn = [one, *(SparseProjection.draw(64, 16, seed=s, name=n) for s, n in ((4, "a"), (3, "b")))]
    drawn += [SparseProjection.draw(64, 17, seed=3, name="a"), SparseProjection.draw(65, 16, seed=3, name="a")]
    assert len({sparse.sha256() for sparse in drawn}) == 5 and again.sha256() == one.sha256()
    flipped = SparseProjection(one.columns, -one.signs, 16)
    wider = SparseProjection(one.columns, one.signs, 17)
    assert len({one.sha256(), flipped.sha256(), wider.sha256()}) == 3

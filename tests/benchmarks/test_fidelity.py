"""The measure of wide layers, small: its exact scores against formed gradients, and a whole run."""

import json
import math
import sys
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import fidelity, wikitext
from lorif_hf.codecs import PackedCodec


@pytest.fixture
def layer():
    return fidelity.synthetic_layer(16, rows=30, queries=4, tokens=6)


def whitened_gradients(layer):
    """Rows' and queries' (n, I O) under the damped inverse of the Kronecker product, by its root in float64."""
    sides = [(rows.double(), queries.double()) for rows, queries in zip(layer.rows, layer.queries, strict=True)]
    moments = [torch.einsum("nti,ntj->ij", rows, rows) for rows, _ in sides]
    damped = [m + 0.1 * m.trace() / len(m) * torch.eye(len(m)).double() for m in moments]
    root = torch.linalg.cholesky(torch.linalg.inv(torch.kron(*damped)))
    return [torch.einsum("nti,nto->nio", sides[0][k], sides[1][k]).flatten(1) @ root for k in (0, 1)]


def test_exact_scores_are_those_of_the_inverse_kronecker_product(layer):
    rows, queries = whitened_gradients(layer)
    torch.testing.assert_close(fidelity.exact_scores(layer).double(), queries @ rows.T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 4])
def test_stored_scores_are_those_of_the_codec(layer, bits):
    rows, queries = fidelity.Way(8).prepared(layer)
    gradients = rows[0].mT @ rows[1]
    assert gradients.shape == (30, 8, 8)
    codec = PackedCodec(2, bits)
    left, right = codec.factors(codec.encode(gradients), 8, 8)
    expected = (queries[0].mT @ queries[1]).flatten(1) @ (left @ right.mT).flatten(1).T
    scores, shares = fidelity.stored_scores(rows, queries, (1, 2), bits, batch=7)[2]
    # Scales are stored in bfloat16; a number near an edge may fall into another level.
    alike = ((scores / shares - expected).abs() < 0.02 * expected.abs().amax(dim=0)).all(dim=0)
    assert int(alike.sum()) >= 28


def test_more_is_nearer_and_all_is_exact(layer):
    truth = fidelity.exact_scores(layer)
    assert fidelity.fidelity(truth, truth) == pytest.approx((1, 1))
    rows, queries = fidelity.Way(bits=8).prepared(layer)
    scores, shares = fidelity.stored_scores(rows, queries, (16,), 8)[16]
    assert fidelity.fidelity(scores, truth)[0] > 0.999 and float(shares.min()) > 0.99


def test_roots_make_the_same_inner_products(layer):
    moment = torch.einsum("nti,ntj->ij", layer.rows[0], layer.rows[0])
    roots = [fidelity.rotated_root, fidelity.symmetric_root, fidelity.cholesky_root]
    first, second, third = (root(moment).double() for root in roots)
    torch.testing.assert_close(first @ first.T, second @ second.T, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(first @ first.T, third @ third.T, rtol=1e-3, atol=1e-6)


def test_between_two_ranks_a_correlation_is_read_off_their_line():
    points = [{"bytes": 100.0, "pearson": 0.2}, {"bytes": 400.0, "pearson": 0.6}]
    assert fidelity.at_bytes(points, 200, "pearson") == pytest.approx(0.4)
    assert fidelity.at_bytes(points, 400, "pearson") == pytest.approx(0.6)
    assert math.isnan(fidelity.at_bytes(points, 401, "pearson"))


def test_a_whole_run(tmp_path, monkeypatch, capsys):
    texts = " ".join(topics.values())
    for name, part in (("valid.txt", texts[:20_000]), ("test.txt", texts[20_000:100_000])):
        (tmp_path / name).write_text(part)
    small = {"WIDTH": 24, "STEPS": 2, "TOKENS": 8, "ROWS": 12, "QUERIES": 3, "RANKS": (1, 2, 3), "WIDTHS": (8, 40)}
    for name, value in (small | {"MADE": {32: (10, 3)}, "BUDGETS": (9, 12), "DEFAULT": 16}).items():
        monkeypatch.setattr(fidelity, name, value)
    monkeypatch.setattr(fidelity, "TestBed", partial(wikitext.TestBed, data=tmp_path))
    fidelity.main(tmp_path / "bed", tmp_path / "fidelity.json")
    written = json.loads((tmp_path / "fidelity.json").read_text())["layers"]
    assert list(written) == ["GPT-2's attn.c_proj, 24 x 24", "GPT-2's mlp.c_fc, 24 x 96", "made, 32 x 32"]
    names = [list(curves) for curves in written.values()]
    assert "M = 40" in names[1] and "M = 40" not in names[0]
    for curves in written.values():
        for name, found in curves.items():
            points = found["points"]
            assert [point["c"] for point in points] == [1, 2, 3], name
            assert all(-1 <= point["pearson"] <= 1 and 0 < point["share"] <= 1 for point in points)
    assert "made, 32 x 32: Pearson at bytes" in capsys.readouterr().out

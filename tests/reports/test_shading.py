"""Shares of tokens: those of some queries."""

from lorif_hf.reports.shading import Shading


def test_some_queries_are_numbered_anew():
    shares = {(0, 4): [1.0], (1, 4): [2.0, 3.0], (1, 7): [4.0, 5.0]}
    whole = Shading([["a"], ["b", "c"]], shares, {4: ["x"], 7: ["y"]}, {(0, 4): [1.0], (1, 7): [9.0]})
    part = whole.of([1], {7})
    assert part.query_tokens == [["b", "c"]] and part.row_tokens == {7: ["y"]}
    assert part.query_shares == {(0, 7): [4.0, 5.0]} and part.row_shares == {(0, 7): [9.0]}

"""Every line of `docs/support.md`: what people train, beside autograd of the Trainer's own loss."""

import json
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import support


CASES = {case.name: case for case in support.cases()}


def written():
    """What the table says, by the case."""
    results = json.loads(support.RESULTS.read_text(encoding="utf-8"))
    return {
        ", ".join(result[key] for key in ("model", "task", "trainer", "adapter", "target")): result
        for result in results
    }


@pytest.mark.parametrize("name", CASES)
def test_what_is_held_is_what_was_trained(name, tmp_path):
    case, told = CASES[name], written()[name]
    result = support.measure(case, tmp_path)
    if case.refused is not None:
        assert case.refused in result["refused"] and "refused" in told
        return
    assert result["error"] <= support.TOLERANCE and result["first"] == 1, result
    assert result["coverage"] >= case.coverage
    for key in ("coverage", "kinds", "recorded"):
        assert result[key] == told[key]
    assert told["error"] <= support.TOLERANCE and told["first"] == 1


def test_the_table_is_that_of_the_results():
    results = json.loads(support.RESULTS.read_text(encoding="utf-8"))
    assert list(written()) == list(CASES)
    text = support.PAGE.read_text(encoding="utf-8")
    version = text.partition("model of transformers ")[2].partition(",")[0]
    assert text == support.page(results, version)

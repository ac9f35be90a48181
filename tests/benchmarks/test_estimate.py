"""The bench of the estimated times, at a tiny size: every shape and phase is there; what it says is not looked at."""

import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import estimate


def test_every_phase_of_every_shape_is_compared(tmp_path, capsys):
    lines = [line for name in estimate.SHAPES for line in estimate.compare(name, size=8, rows=3)]
    assert [line["phase"] for line in lines] == 3 * ["first pass", "roots", "recording", "all"]
    assert all(line["predicted"] > 0 and line["measured"] >= 0 and line["speed"] > 0 for line in lines)
    json.dumps(lines)

"""The examples are scripts: their folder is where they find what they share."""

import sys
from pathlib import Path


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.insert(0, str(EXAMPLES))

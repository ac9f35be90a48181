"""Models, batches and reference gradients for these tests: see `tests/support/recordings.py`."""

from recordings import *  # noqa: F403

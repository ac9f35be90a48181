"""Models, batches and reference gradients for these tests: see `tests/support/recordings.py`."""

import pytest
from recordings import *  # noqa: F403


@pytest.fixture(scope="module")
def causal(build):
    return build("llama")


@pytest.fixture(scope="module")
def classifier(build):
    return build("bert-classifier", id2label={0: "bad", 1: "good", 2: "odd"}, label2id={"bad": 0, "good": 1, "odd": 2})

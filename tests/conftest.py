"""Fixtures of all tests. The only Hub there is, is a local one: see `local_hub`.

The variables come first, because huggingface_hub reads them when it is imported.
"""

import os
import tempfile

from local_hub import LocalHub


_hub = LocalHub().start()
os.environ.update(
    HF_ENDPOINT=_hub.endpoint,
    HF_HOME=tempfile.mkdtemp(prefix="hf-home-"),
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    NO_PROXY="127.0.0.1",
)
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads of torch would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
    os.environ.pop(_name, None)

import re
from types import SimpleNamespace

import pytest
from datasets import Dataset
from tiny import make_gpt2, make_rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


# A set of strings as it is shown, or an object's address: either differs from one process to the next.
_UNSTEADY = re.compile(r"\{'[^':]*'(, '[^':]*')*\}| at 0x")


def pytest_collection_modifyitems(items):
    """Processes of pytest-xdist must collect the same tests: a name made of a set fails there, now and then."""
    unsteady = [item.nodeid for item in items if _UNSTEADY.search(item.nodeid)]
    if unsteady:
        raise pytest.UsageError(f"names that differ between processes; give `ids`: {unsteady}")


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    return make_gpt2()


@pytest.fixture
def rows() -> Dataset:
    return make_rows(20)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word "0" to "49"."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(50)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", unk_token="0")


@pytest.fixture
def hub():
    """An empty Hub; the real client talks to it. Its own failures fail the test."""
    _hub.reset()
    yield _hub
    assert _hub.errors == []


@pytest.fixture
def sleeps(monkeypatch):
    """The waits between retries, listed instead of slept: no variable shortens the client's (1, 2, 4, 8, 8 s)."""
    waited: list[float] = []
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download", "lorif_hf.hub.store"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=waited.append))
    return waited

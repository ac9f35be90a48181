"""Fixtures of all tests. The Hub is offline and silent unless a test brings its own."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
from datasets import Dataset
from tiny import make_gpt2, make_rows
from transformers import GPT2LMHeadModel


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    return make_gpt2()


@pytest.fixture
def rows() -> Dataset:
    return make_rows(20)

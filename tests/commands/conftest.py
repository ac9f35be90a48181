"""A model and its index, made once for all commands."""

import shutil

import pytest
from terminal import save_model_and_index


@pytest.fixture(scope="package")
def saved(tmp_path_factory):
    """A folder with a model and an index of it that has its tokenizer; nobody writes into it."""
    return save_model_and_index(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def index(saved, tmp_path):
    """A copy of the index that may be spoilt."""
    return shutil.copytree(saved / "index", tmp_path / "index")

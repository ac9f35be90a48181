"""An index of a tiny language model that answers in words, and what the app asks of it."""

import pytest
from app_rows import rows, talker, words
from tiny import plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.app import launch
from lorif_hf.app.questions import Questions


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app") / "index"
    config = plain_config(projection_factor=2)
    return InfluenceIndex.build(talker(), rows(), folder, config=config, processing_class=words())


@pytest.fixture(scope="session")
def model():
    return talker()


@pytest.fixture(scope="session")
def questions(index, model):
    return Questions(index, model)


@pytest.fixture(scope="session")
def app(index, tmp_path_factory):
    """The app as it runs, started by names as from the command line."""
    pytest.importorskip("gradio", reason="Gradio is not installed (pip install 'lorif-hf[app]')")
    folder = tmp_path_factory.mktemp("model")
    talker().save_pretrained(folder)
    running = launch(index.path, str(folder), host="127.0.0.1", block=False)
    yield running
    running.close()

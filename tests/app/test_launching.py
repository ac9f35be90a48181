"""The app as it runs: several users at once, errors as messages, nothing told to anybody."""

import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from app_rows import talker

from lorif_hf.app import build_app, launch
from lorif_hf.app.questions import Choices
from lorif_hf.errors import AppError, IndexFormatError, ModelMismatchError


MISSING = "Gradio is not installed (pip install 'lorif-hf[app]')"
OPTIONS = (3, 2, 4, True, False, False)  # proponents, opponents, tokens, fold, shade, chat


@pytest.fixture(scope="module")
def client():
    gradio_client = pytest.importorskip("gradio_client", reason=MISSING)
    return lambda app: gradio_client.Client(app.local_url, verbose=False)


def test_two_users_at_once_get_each_their_own(app, client, questions):
    prompts = ["5 9 14", "30 2"]
    users = [client(app) for _ in prompts]

    def ask(place):
        return users[place % 2].predict(prompts[place % 2], "", *OPTIONS, api_name="/ask")

    with ThreadPoolExecutor(4) as pool:
        shown = list(pool.map(ask, range(6)))
    for place, (answer, ranking, page, table, data, groups) in enumerate(shown):
        prompt = prompts[place % 2]
        said = questions.answer(prompt, 4).text
        result = questions.attribute(prompt, said, Choices(3, 2, 4))
        assert said.strip() in answer and groups == ""
        assert prompt in ranking and all(f"{row}" in ranking for row in result.indices[0].tolist())
        for file in (page, table, data):
            path = file["value"] if isinstance(file, dict) else file
            assert prompt in Path(path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments, name, message",
    [
        (("", "", *OPTIONS), "/ask", "There is nothing to ask: type a prompt."),
        (("1 " * 20, "", *OPTIONS), "/ask", "Query 0 has 20 tokens, the model takes at most 16: shorten it."),
        ((24,), "/row", "Row 24 is outside the index, which has rows 0 to 23."),
    ],
    ids=["empty", "long", "row"],
)
def test_an_error_is_a_message_and_the_app_goes_on(app, client, arguments, name, message):
    user = client(app)
    with pytest.raises(Exception, match=message) as error:
        user.predict(*arguments, api_name=name)
    assert "Traceback" not in str(error.value)
    assert "Row 7" in user.predict(7, api_name="/row")


def test_nothing_is_told_to_anybody(app):
    assert app.analytics_enabled is False and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert app.share_url is None and app.run_history is False and app.enable_monitoring is False


def test_a_port_that_is_taken_is_said(index):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AppError, match=rf"cannot listen on 127\.0\.0\.1, port {port}.*pass another port="):
            launch(index, talker(), host="127.0.0.1", port=port, block=False)


def test_what_is_wrong_with_index_or_model_is_said_before_anything_is_served(index, tmp_path):
    with pytest.raises(IndexFormatError, match="holds no index"):
        launch(tmp_path, talker())
    with pytest.raises(ModelMismatchError, match="weights"):
        launch(index, talker(seed=1))


def test_without_gradio_the_way_out_is_said(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for start in (launch, build_app):
        with pytest.raises(AppError, match=r"needs Gradio: pip install \"lorif-hf\[app\]\""):
            start(index, talker())

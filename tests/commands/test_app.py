"""`lorif-hf app`: hands its options on, and says what to install."""

import sys
from types import SimpleNamespace

import pytest
from terminal import refused, run


@pytest.fixture
def calls(monkeypatch):
    calls = []
    stand_in = SimpleNamespace(
        launch=lambda *arguments, **options: calls.append(("launch", arguments, options)),
        push_space=lambda *arguments, **options: (
            calls.append(("push", arguments, options)) or SimpleNamespace(repo_url="https://hub/space")
        ),
    )
    monkeypatch.setitem(sys.modules, "lorif_hf.app", stand_in)
    return calls


def test_the_app_is_launched_with_what_was_asked(calls):
    result = run("app", "me/index", "--model", "me/model", "--port", 8000, "--share", "--token", "t")
    options = {"host": None, "port": 8000, "share": True, "device": None, "revision": None, "token": "t"}
    assert result.exit_code == 0 and calls == [("launch", ("me/index", "me/model"), options)]


def test_the_app_is_pushed_as_a_space(calls):
    result = run("app", "me/index", "--model", "me/model", "--push-space", "me/space", "--revision", "v1")
    assert result.stdout == "https://hub/space\n"
    assert calls == [("push", ("me/space", "me/index", "me/model"), {"revision": "v1", "token": None})]


def test_without_its_extra_the_app_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lorif_hf.app", None)
    assert refused("app", "me/index", "--model", "me/model").endswith('pip install "lorif-hf[app]".')

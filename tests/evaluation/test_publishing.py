"""Metrics as Spaces of a Hub: the real client pushes, and `evaluate` loads what was pushed."""

import evaluate
import pytest
from huggingface_hub import HfApi

import lorif_hf
from lorif_hf.errors import EvaluationError, HubAccessError, HubConnectionError, PublishError
from lorif_hf.evaluation import metric_names, push_metric_to_hub


INPUTS = {"predictions": [2.0, 1.0], "references": [1.0, 0.5]}


@pytest.mark.parametrize("name", metric_names())
def test_every_metric_becomes_a_space_in_one_commit(hub, name):
    commit = push_metric_to_hub(name, f"user/{name}", token=hub.token)
    files = hub.files(f"user/{name}", "space")
    assert set(files) == {".gitattributes", f"{name}.py", "app.py", "README.md", "requirements.txt"}
    assert len(hub.commits(f"user/{name}", "space")) == 2  # the one that made the repo, and ours
    assert commit.commit_message == f"Upload the metric {name} with lorif-hf"
    assert HfApi(token=hub.token).space_info(f"user/{name}").sdk == "gradio" and b"sdk: gradio" in files["README.md"]


def test_evaluate_loads_what_was_pushed_under_any_name(hub):
    push_metric_to_hub("tail_patch", "user/my-metric", token=hub.token)
    assert {"my-metric.py", "app.py"} <= set(hub.files("user/my-metric", "space"))
    module = evaluate.load("user/my-metric")
    assert module.compute(**INPUTS)["tail_patch"] == 0.75
    card = hub.files("user/my-metric", "space")["README.md"].decode()
    assert 'evaluate.load("user/my-metric")' in card and "user/tail_patch" not in card


def test_the_widget_of_the_space_finds_the_script(hub, tmp_path, monkeypatch):
    push_metric_to_hub("tail_patch", "user/my-metric", token=hub.token)
    for name, content in hub.files("user/my-metric", "space").items():
        (tmp_path / name).write_bytes(content)
    launched = []
    monkeypatch.setattr(evaluate.utils, "launch_gradio_widget", launched.append)  # gradio is not installed
    app = tmp_path / "app.py"
    exec(compile(app.read_text(), app, "exec"), {"__file__": str(app), "__name__": "__main__"})
    assert launched[0].compute(**INPUTS)["tail_patch"] == 0.75


def test_the_space_installs_this_version_or_the_one_asked_for(hub):
    push_metric_to_hub("lds", "user/lds", token=hub.token)
    first, *others = hub.files("user/lds", "space")["requirements.txt"].decode().splitlines()
    assert first == f"lorif-hf[evaluate]=={lorif_hf.__version__}" and "pydantic<2" in others
    git = "lorif-hf[evaluate] @ git+https://example.com/lorif-hf"
    push_metric_to_hub("lds", "user/lds", token=hub.token, requirement=git, commit_message="From git")
    assert hub.files("user/lds", "space")["requirements.txt"].decode().splitlines() == [git, *others]
    assert hub.commits("user/lds", "space")[0].title == "From git"


def test_a_push_of_an_unchanged_metric_makes_no_commit(hub):
    first = push_metric_to_hub("lds", "user/lds", token=hub.token)
    assert push_metric_to_hub("lds", "user/lds", token=hub.token).oid == first.oid
    assert len(hub.commits("user/lds", "space")) == 2


def test_private_branches_pull_requests_and_names_without_a_user(hub):
    push_metric_to_hub("lds", "lds", token=hub.token, private=True)
    api = HfApi(token=hub.token)
    assert api.repo_info("user/lds", repo_type="space").private
    assert b'evaluate.load("user/lds"' in hub.files("user/lds", "space")["README.md"]
    pull = push_metric_to_hub("lds", "user/lds", token=hub.token, create_pr=True, requirement="lorif-hf")
    assert pull.pr_num == 1
    api.create_branch("user/lds", branch="next", repo_type="space")
    push_metric_to_hub("lds", "user/lds", token=hub.token, revision="next", requirement="lorif-hf")
    assert hub.files("user/lds", "space", "next")["requirements.txt"].startswith(b"lorif-hf\n")
    assert hub.files("user/lds", "space")["requirements.txt"].startswith(b"lorif-hf[evaluate]==")


@pytest.mark.parametrize(
    "name, repo_id, kind, message",
    [
        ("nothing", "user/lds", EvaluationError, "There is no metric 'nothing': choose one of lds, "),
        ("lds", "user/a/b", PublishError, "'user/a/b' is no repo id"),
        (
            "lds",
            "user/my.lds",
            EvaluationError,
            "'user/my.lds' cannot be the Space of a metric.*for example 'lorif",
        ),
        ("lds", "user/app", EvaluationError, "'user/app' cannot be the Space of a metric"),
    ],
)
def test_what_could_not_be_loaded_is_not_pushed(hub, name, repo_id, kind, message):
    with pytest.raises(kind, match=message):
        push_metric_to_hub(name, repo_id, token=hub.token)
    assert hub.requests == []


def test_a_requirement_with_a_token_stays_here(hub):
    secret = "hf_" + "aB3" * 11 + "x"
    with pytest.raises(PublishError, match="requirements.txt holds an access token"):
        push_metric_to_hub("lds", "user/lds", token=hub.token, requirement=f"x @ git+https://u:{secret}@example.com/x")
    assert hub.requests == []


def test_errors_of_the_hub_are_ours(hub, sleeps):
    with pytest.raises(HubAccessError, match="This token may not do that with 'user/lds': it needs the write role"):
        push_metric_to_hub("lds", "user/lds", token=hub.read_token)
    with pytest.raises(HubAccessError, match="The Hub does not accept this token for 'user/lds'"):
        push_metric_to_hub("lds", "user/lds", token="hf_wrong")
    hub.faults.add("POST .*commit", "status", status=500)
    with pytest.raises(HubConnectionError, match="The Hub failed at user/lds"):
        push_metric_to_hub("lds", "user/lds", token=hub.token)
    assert set(hub.files("user/lds", "space")) == {".gitattributes"}

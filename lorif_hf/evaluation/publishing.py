"""The metrics as `evaluate` opens them: where their folders are, and how they become Spaces of the Hub.

Each folder in `metrics/` is a thin shim over the plain functions of this package, with the README of its Space; the
rest of a Space is the same for all. `evaluate` itself is optional: nothing here imports it.
"""

import re
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd

from ..errors import EvaluationError
from ..hub.publish import check_contents, check_repo_id
from ..hub.store import hub_api, retried, translated_errors


METRICS = Path(__file__).parent / "metrics"
_SPACE = "space"
_APP = "app.py"
_WIDGET = '''\
"""The widget of the Space. `evaluate` opens the script by its file: the repo may have another name than the metric."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget


(script,) = set(Path(__file__).parent.glob("*.py")) - {Path(__file__)}
launch_gradio_widget(evaluate.load(str(script)))
'''
_REQUIREMENTS = """\
# The widget of evaluate 0.4.6 is for gradio 3 (sdk_version in README.md), which breaks with newer ones of these:
fastapi<0.100
pydantic<2
"""
_PLACEHOLDER = "user/"  # with the metric's name: how the README calls the Space that it will be


def metric_names() -> list[str]:
    """The metrics that [`metric`] knows.

    Example:

    ```python
    >>> metric_names()
    ['lds', 'mislabel_detection', 'retrieval', 'tail_patch']
    ```
    """
    return sorted(folder.name for folder in METRICS.iterdir() if (folder / f"{folder.name}.py").is_file())


def metric(name: str) -> str:
    """Folder of a metric, for `evaluate.load(lorif_hf.metric("lds"))`; works offline.

    Args:
        name (`str`): "lds", "mislabel_detection", "retrieval" or "tail_patch".

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: no metric has that name; the valid names are listed.

    Example:

    ```python
    >>> lds = evaluate.load(lorif_hf.metric("lds"))
    ```
    """
    if name not in metric_names():
        raise EvaluationError(f"There is no metric {name!r}: choose one of {', '.join(metric_names())}.")
    return str(METRICS / name)


def push_metric_to_hub(
    name: str,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    requirement: str | None = None,
) -> CommitInfo:
    """Make a Space of a metric, in one commit, so that `evaluate.load(repo_id)` finds it where lorif-hf is installed.

    `evaluate` looks for a script named like the repo, so the script is uploaded under that name. Pushing again
    replaces all four files.

    Args:
        name (`str`): as in [`metric`].
        repo_id (`str`): the Space, "user/lds"; made where it does not exist. Letters, digits, "_" and "-" alone, as
            Python has to import the script.
        private, token, revision, create_pr, commit_message (*optional*): as in `HfApi.create_commit`. Only a public
            Space can be loaded by `evaluate`, which sends no token.
        requirement (`str`, *optional*): how pip gets lorif-hf in the Space; by default the version that is running,
            from PyPI.

    Returns:
        `CommitInfo`: the commit.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: no such metric.
        [`~lorif_hf.errors.PublishError`]: the name, or a file, must not leave this machine. Nothing was uploaded.
        [`~lorif_hf.errors.HubError`]: something went wrong on the way.

    Example:

    ```python
    >>> push_metric_to_hub("lds", "me/lds")
    ```
    """
    folder = Path(metric(name))
    check_repo_id(repo_id)
    script = repo_id.rpartition("/")[2]
    if not re.fullmatch(r"[A-Za-z0-9_-]+", script) or f"{script}.py" == _APP:
        raise EvaluationError(
            f"{repo_id!r} cannot be the Space of a metric: its script is named like the repo, and Python must be able "
            f"to import it beside {_APP}. Use letters, digits, '_' and '-', for example 'lorif-{name}'."
        )
    ours = requirement or f"lorif-hf[evaluate]=={version('lorif-hf')}"
    files = {
        f"{script}.py": (folder / f"{name}.py").read_text(encoding="utf-8"),
        "README.md": (folder / "README.md").read_text(encoding="utf-8"),
        _APP: _WIDGET,
        "requirements.txt": f"{ours}\n{_REQUIREMENTS}",
    }
    check_contents({file: text.encode() for file, text in files.items()}, token)
    api = hub_api(token)
    with translated_errors(repo_id, revision, token=token, repo_type=_SPACE):
        made = api.create_repo(repo_id, repo_type=_SPACE, space_sdk="gradio", private=private, exist_ok=True)
        repo_id = made.repo_id
        head = retried(lambda: api.repo_info(repo_id, revision=revision, repo_type=_SPACE), repo_id)
        files["README.md"] = files["README.md"].replace(f"{_PLACEHOLDER}{name}", repo_id)
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(file, text.encode()) for file, text in files.items()],
            commit_message=commit_message or f"Upload the metric {name} with lorif-hf",
            revision=revision,
            create_pr=create_pr,
            parent_commit=None if create_pr else head.sha,
            repo_type=_SPACE,
        )

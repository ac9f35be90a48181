"""The app as a Space of the Hub: three small files, and variables that name the index and its model."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import AppError, PublishError
from ..hub.publish import check_contents, check_repo_id
from ..hub.store import hub_api, retried, translated_errors


REPO_TYPE = "space"
_TEMPLATES = Environment(
    loader=PackageLoader("lorif_hf.app", "templates/space"), undefined=StrictUndefined, keep_trailing_newline=True
)
_FILES = ("README.md", "app.py", "requirements.txt")


def space_files(index: str, model: str, gradio: str | None = None) -> dict[str, str]:
    """The files of a Space, by name.

    Args:
        index, model (`str`): the repos of the index and of its model, for the card; the app reads its variables.
        gradio (`str`, *optional*): the version of Gradio that the Space runs; by default the one installed here.
    """
    values = {"index": index, "model": model, "gradio": gradio or _gradio(), "version": version("lorif-hf")}
    return {name: _TEMPLATES.get_template(name).render(values) for name in _FILES}


def push_space(
    repo_id: str,
    index: str,
    model: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Make a Space of the app, or bring it up to date, in one commit.

    The Space reads the index and the model from its variables `INDEX`, `MODEL` and `REVISION`, which can be changed in
    its settings. Where one of them is private, give the Space a secret `HF_TOKEN` with a token that may read it: none
    is pushed.

    Args:
        repo_id (`str`): the Space, "user/my-space", or a name of your own namespace; made where it does not exist.
        index (`str`): the repo of the index.
        model (`str`): the repo of the model that was indexed, or of its adapter.
        revision (`str`, *optional*): branch, tag or commit of the index; by default `main`.
        private (`bool`, *optional*): whether a new Space is private; by default as your account has it.
        token (`str` or `bool`, *optional*): Hub token; by default the one you logged in with.

    Returns:
        `CommitInfo`: the commit; its `repo_url` is the Space's address.

    Raises:
        [`~lorif_hf.errors.PublishError`]: a name is none of a repo.
        [`~lorif_hf.errors.HubError`]: the index or the model is not on the Hub, or the Hub refuses; nothing was pushed
        then.
        [`~lorif_hf.errors.AppError`]: Gradio is not installed, whose version the Space runs.

    Example:

    ```python
    from lorif_hf.app import push_space

    push_space("me/my-space", "me/my-index", "me/my-model")
    ```
    """
    check_repo_id(repo_id)
    for name, kind, way_out in ((index, "dataset", "lorif-hf push"), (model, "model", "model.push_to_hub")):
        if name.count("/") != 1 or name.startswith((".", "/")):
            raise PublishError(
                f"A Space reads its {'index' if kind == 'dataset' else 'model'} from the Hub, and {name!r} is no repo "
                f"id like 'user/name': push it first ({way_out}), and pass its repo."
            )
        check_repo_id(name)
        with translated_errors(name, revision if kind == "dataset" else None, token=token, repo_type=kind):
            hub_api(token).repo_info(name, repo_type=kind, revision=revision if kind == "dataset" else None)
    files = {name: text.encode() for name, text in space_files(index, model).items()}
    check_contents(files, token)
    return _pushed(repo_id, files, {"INDEX": index, "MODEL": model, "REVISION": revision}, private, token)


def _pushed(
    repo_id: str,
    files: dict[str, bytes],
    variables: dict[str, str | None],
    private: bool | None,
    token: str | bool | None,
) -> CommitInfo:
    """Make the Space, set its variables, so that it starts with them, and commit its files."""
    api = hub_api(token)
    with translated_errors(repo_id, None, token=token, repo_type=REPO_TYPE):
        made = api.create_repo(repo_id, repo_type=REPO_TYPE, space_sdk="gradio", private=private, exist_ok=True)
        repo_id = made.repo_id
        present: Any = api.get_space_variables(repo_id)
        for key, value in variables.items():
            if value is not None:
                api.add_space_variable(repo_id, key, value)
            elif key in present:
                api.delete_space_variable(repo_id, key)
        head = retried(lambda: api.repo_info(repo_id, repo_type=REPO_TYPE), repo_id)
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message="The attribution app of lorif-hf",
            repo_type=REPO_TYPE,
            parent_commit=head.sha,
        )


def _gradio() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        raise AppError('A Space is pushed for the Gradio installed here: pip install "lorif-hf[app]".') from None

"""Where an index is pushed: made once, and handed on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Destination:
    """A dataset repo, and the commit that is to be made in it.

    Args:
        repo_id (`str`): "user/my-index", or a name of the token's own namespace; made where it does not exist.
        private (`bool`, *optional*): whether a new repo is private; by default as the account has it.
        token (`str` or `bool`, *optional*): Hub token; by default the one of the login.
        revision (`str`, *optional*): branch, made where it does not exist; by default `main`.
        create_pr (`bool`): open a pull request instead.
        commit_message, commit_description (`str`, *optional*): of the commit.
    """

    repo_id: str
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    commit_description: str | None = None

"""Where something is pushed: made once, and handed on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Destination:
    """A repo of the Hub, and the commit that is to be made in it: the arguments of [`InfluenceIndex.push_to_hub`].

    Example:

    ```python
    >>> Destination("me/my-index", private=True, model_id="me/my-model")
    ```
    """

    repo_id: str
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    commit_description: str | None = None
    model_id: str | None = None

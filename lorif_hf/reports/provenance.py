"""Where an answer comes from: what a reader needs to get it again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any


_ANSWERING = ("lorif-hf", "torch", "transformers")


@dataclass(frozen=True)
class Provenance:
    """What was asked, of what, with what and when.

    Args:
        model (`str` or `None`): the model that was indexed: its repo or folder, else its class.
        repo_id, commit (`str` or `None`): the Hub repo of the index and the commit that answered, where it is from the
            Hub.
        index (`str` or `None`): what the index is called: its repo, else the name of its folder.
        num_examples (`int` or `None`): rows that were ranked.
        config (`Mapping[str, Any]`): the [`~lorif_hf.InfluenceConfig`] of the index, as a dict.
        versions (`Mapping[str, str]`): of lorif-hf, torch and transformers, as they answered.
        date (`str` or `None`): when, ISO 8601 in UTC, to the second.
    """

    model: str | None = None
    repo_id: str | None = None
    commit: str | None = None
    index: str | None = None
    num_examples: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str | None = None

    @classmethod
    def now(cls, **known: Any) -> "Provenance":
        """That of an answer which is given now, by this process; `known` are the other fields."""
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        versions = {name: held for name in _ANSWERING if (held := _version(name)) is not None}
        return cls(**known, versions=versions, date=date)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

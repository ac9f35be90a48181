"""What is shown while work goes on: progress bars and log messages, by the switches of the Hugging Face libraries."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from huggingface_hub.utils import tqdm


_hidden: ContextVar[bool] = ContextVar("lorif_hf_bars_hidden", default=False)


def progress(total: int, what: str, unit: str, initial: int = 0) -> Any:
    """A bar that shows itself once the work has taken half a second, unless bars are switched off: by
    `huggingface_hub.utils.disable_progress_bars()` and its variable `HF_HUB_DISABLE_PROGRESS_BARS`,
    `datasets.disable_progress_bars()`, `transformers.logging.disable_progress_bar()`, or a verbosity of transformers
    that hides warnings (which hides the Trainer's bar as well)."""
    hidden = {"disable": True} if bars_are_hidden() else {}
    return tqdm(total=total, desc=what, unit=f" {unit}", initial=initial, delay=0.5, name="lorif_hf", **hidden)


@contextmanager
def without_bars(hidden: bool | None = True) -> Iterator[None]:
    """No bars in this block, where `hidden`: what `TrainingArguments.disable_tqdm` asks for."""
    before = _hidden.set(bool(hidden) or _hidden.get())
    try:
        yield
    finally:
        _hidden.reset(before)


def bars_are_hidden() -> bool:
    """Whether one of the other libraries, as far as they are loaded, or [`without_bars`] hides bars."""
    datasets, transformers = sys.modules.get("datasets"), sys.modules.get("transformers.utils.logging")
    return (
        _hidden.get()
        or (datasets is not None and datasets.are_progress_bars_disabled())
        or (transformers is not None and not transformers.is_progress_bar_enabled())
        or (_transformers_level() or 0) > logging.WARNING
    )


def _transformers_level() -> int | None:
    """The verbosity of transformers where somebody changed it (`set_verbosity_error()`, `TRANSFORMERS_VERBOSITY`,
    `TrainingArguments(log_level=...)`)."""
    transformers = sys.modules.get("transformers.utils.logging")
    level = None if transformers is None else int(transformers.get_verbosity())
    return None if level == logging.WARNING else level


class LibraryLogger(logging.Logger):
    """The logger above all of ours. Where nobody gave it a level, it has the verbosity of transformers, once that is
    another than what it began with."""

    @property
    def level(self) -> int:
        own: int = self.__dict__.get("level", logging.NOTSET)
        return own or _transformers_level() or logging.NOTSET

    @level.setter
    def level(self, level: int) -> None:
        self.__dict__["level"] = level


# The loggers of our modules ask for the level of this one, which may have been made, and given a level, before.
logging.getLogger("lorif_hf").__class__ = LibraryLogger

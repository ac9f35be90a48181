"""The figures of an index, told to what watches the training: the log, and the trackers of `report_to`."""

import logging
from typing import Any

from lorif_hf import InfluenceIndex


logger = logging.getLogger(__name__)

# Trackers of transformers that have ended their run when the training has: what comes later would begin another.
_OVER = {
    "ClearMLCallback",
    "DVCLiveCallback",
    "MLflowCallback",
    "NeptuneCallback",
    "TrackioCallback",
}
_KNOWN_TO_EVENTS = ("model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader")


def figures_of(index: InfluenceIndex, seconds: float) -> dict[str, float]:
    """What a training's log says of its index.

    Args:
        index (`InfluenceIndex`): the index.
        seconds (`float`): what its final pass took.

    Example:

    ```python
    >>> figures_of(index, 12.5)
    {'influence/rows': 1000, 'influence/bytes_per_example': 1584.0, 'influence/seconds': 12.5}
    ```
    """
    figures = {
        "influence/rows": len(index),
        "influence/bytes_per_example": index.bytes_per_example,
        "influence/seconds": seconds,
    }
    return figures | ({"influence/coverage": index.coverage.share} if index.coverage.trained else {})


def report(trainer: Any, figures: dict[str, float]) -> None:
    """Add figures to the log of a training that has just ended, and tell everything that watches it.

    A tracker that fails costs nothing: it is said, and the others are told.

    Args:
        trainer (`transformers.Trainer`): whose training it was.
        figures (`dict`): by name.

    Example:

    ```python
    >>> report(trainer, figures_of(index, seconds=12.5))
    ```
    """
    handler, state = trainer.callback_handler, trainer.state
    state.log_history.append({**figures, "step": state.global_step})
    known = {name: getattr(handler, name, None) for name in _KNOWN_TO_EVENTS}
    for callback in handler.callbacks:
        if _OVER & {kind.__name__ for kind in type(callback).__mro__}:
            continue
        try:
            callback.on_log(trainer.args, state, trainer.control, logs=dict(figures), **known)
        except Exception as error:
            logger.warning(
                "%s was not told the figures of the influence index (%s: %s).",
                type(callback).__name__,
                type(error).__name__,
                error,
            )

"""Where the Trainer pushes: the repo of the index beside the model's, and a word of it in the model's card."""

import functools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorif_hf import InfluenceIndex
from lorif_hf.hub.cards import model_card_section
from lorif_hf.hub.destination import Destination
from lorif_hf.hub.publish import prepare_repo
from lorif_hf.storage.files import write_text
from lorif_hf.storage.layout import CARD


logger = logging.getLogger(__name__)

_SUFFIX = "-influence"


def model_of(trainer: Any, args: Any) -> str | None:
    """The Hub id of the model that is trained, as far as it is known: with the namespace once the Trainer has its
    repo."""
    return getattr(trainer, "hub_model_id", None) or args.hub_model_id


def destination_of(
    trainer: Any, args: Any, folder: Path, repo_id: str | None, private: bool | None, token: str | bool | None
) -> Destination:
    """Where an index goes: what was given to the callback, else beside the model, as its `TrainingArguments` say.

    Args:
        trainer, args: the Trainer, where it is known, and its arguments.
        folder (`Path`): of the index, whose name is the last resort.
        repo_id, private, token (*optional*): what was given.

    Example:

    ```python
    >>> args = TrainingArguments("out", push_to_hub=True, hub_model_id="me/my-model", hub_private_repo=True)
    >>> destination_of(None, args, Path("my-index"), None, None, None).repo_id
    'me/my-model-influence'
    ```
    """
    model_id = model_of(trainer, args)
    return Destination(
        repo_id or (f"{model_id}{_SUFFIX}" if model_id else folder.name),
        args.hub_private_repo if private is None else private,
        args.hub_token if token is None else token,
        model_id=model_id if model_id and "/" in model_id else None,
    )


def prepared(destination: Destination) -> Destination:
    """The same with the namespace that the Hub gives it. The repo is made: a wrong name or token shows at once.

    Example:

    ```python
    >>> prepared(Destination("my-model-influence")).repo_id
    'me/my-model-influence'
    ```
    """
    repo_id, _ = prepare_repo(destination)
    return replace(destination, repo_id=repo_id)


def link_cards(trainer: Any, index: InfluenceIndex, index_id: str, token: str | bool | None) -> None:
    """Let the model's card say where its index is: in the repo that the Trainer pushed to, if it did, and in every
    card that it writes from now on (`trainer.push_to_hub()` writes a new one).

    What goes wrong with a card is logged: it costs neither the training nor the index.

    Args:
        trainer (`transformers.Trainer`): whose training it was.
        index (`InfluenceIndex`): its index, which was pushed.
        index_id (`str`): where to, with its namespace.
        token (`str` or `bool`, *optional*): for the Hub.

    Example:

    ```python
    >>> link_cards(trainer, index, "me/my-model-influence", token=None)
    ```
    """
    write_card = trainer.create_model_card

    @functools.wraps(write_card)
    def write_linked_card(*args: Any, **kwargs: Any) -> Any:
        result = write_card(*args, **kwargs)
        _add_section(trainer, index, index_id)
        return result

    trainer.create_model_card = write_linked_card
    _add_section(trainer, index, index_id)
    model_id = getattr(trainer, "hub_model_id", None)
    if not trainer.args.push_to_hub or model_id is None:
        return
    try:
        pushing = getattr(trainer, "push_in_progress", None)
        if pushing is not None:
            pushing.wait_until_done()  # a checkpoint on its way has a card of its own
        revision = getattr(trainer.args, "hub_revision", None)
        index.push_model_card_section(model_id, index_id=index_id, token=token, revision=revision)
    except Exception as error:
        logger.warning("The card of %s does not say yet where its influence index is. %s", model_id, error)


def _add_section(trainer: Any, index: InfluenceIndex, index_id: str) -> None:
    """Put the section into the card that the Trainer has written beside its model, if it has."""
    path = Path(trainer.args.output_dir) / CARD
    if not path.is_file():
        return
    model_id = model_of(trainer, trainer.args) or path.parent.name
    try:
        card = path.read_bytes().decode()
        write_text(path, model_card_section(index.manifest, index.config, index_id, card, model_id))
    except Exception as error:
        logger.warning("%s does not say where the influence index is (%s: %s).", path, type(error).__name__, error)

"""Models and tokenizers by name, for a command: on its device, and what cannot be loaded told in a line."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ModelMismatchError, ProcessingClassError
from .slips import told_as


if TYPE_CHECKING:
    from torch import nn

    from ..index import InfluenceIndex

_MODEL = (
    "Expected a folder with config.json and weights (or adapter_config.json and an adapter's), or a Hub id; for a "
    "private one log in (hf auth login) or pass --token."
)


def queried_model(name: str, index: "InfluenceIndex", token: str | None, device: str | None) -> "nn.Module":
    """The model that an index is asked with.

    Args:
        name (`str`): Hub id or folder, of an adapter where an adapter was indexed.
        index (`InfluenceIndex`): says by which class it is loaded.
        token (`str`, *optional*): for the Hub.
        device (`str`, *optional*): where it goes; by default to a GPU where there is one.

    Raises:
        [`~lorif_hf.errors.ModelMismatchError`]: it cannot be loaded.
        [`~lorif_hf.errors.QueryError`]: there is no such device here.
    """
    from ..querying.loading import load_model

    place = device_of(device)
    names = [entry.name for entry in index.manifest.modules]
    return _placed(load_model(name, index.manifest.model, token, names), place)


def trained_model(name: str, token: str | None, device: str | None) -> tuple["nn.Module", list[str]]:
    """A model by the class that its config names, or an adapter over its base model, as it was trained: in its own
    dtype, the adapter's weights trainable. Beside it the names at which its tokenizer may be, the nearest first.

    Arguments and errors are those of [`queried_model`].
    """
    from ..estimating.empty_models import adapter_config, base_of, model_class_of

    place = device_of(device)
    with told_as(ModelMismatchError, f"No model can be loaded from {name}", _MODEL):
        adapter = adapter_config(name, token)
        base = name if adapter is None else base_of(name, adapter)
        model = model_class_of(base, token, adapter)[0].from_pretrained(base, token=token, dtype="auto")
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, name, token=token, is_trainable=True)
        return _placed(model.eval(), place), list(dict.fromkeys([name, base]))


def tokenizer_of(names: Iterable[str], token: str | None) -> Any:
    """The tokenizer (or processor) of the first of these names that has one.

    Raises:
        [`~lorif_hf.errors.ProcessingClassError`]: none has.
    """
    from transformers import AutoTokenizer

    known = list(names)
    for name in known[:-1]:
        try:
            return AutoTokenizer.from_pretrained(name, token=token)
        except Exception:  # of an adapter alone: its base model's is asked next
            continue
    way_out = "Pass --tokenizer, a folder or Hub id that has one."
    with told_as(ProcessingClassError, f"No tokenizer can be loaded from {known[-1]}", way_out):
        return AutoTokenizer.from_pretrained(known[-1], token=token)


def device_of(device: str | None) -> str:
    """A device that is here; by default a GPU where there is one.

    Raises:
        [`~lorif_hf.errors.QueryError`]: there is no such device here.
    """
    import torch

    from ..querying.device_scan import usable_device

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    usable_device(device)
    return device


def _placed(model: Any, device: str) -> Any:
    """A model on a device. One that was loaded onto its devices already, as quantised ones are, stays there."""
    placed: Mapping[str, Any] | None = getattr(model, "hf_device_map", None)
    quantized = getattr(model, "is_quantized", False) or getattr(model, "is_loaded_in_8bit", False)
    return model if placed or quantized else model.to(device)

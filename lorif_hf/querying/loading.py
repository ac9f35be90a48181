"""The model to query with, loaded by name."""

from typing import Any

from torch import nn

from ..errors import ModelMismatchError
from ..registry import TASKS


def load_model(name: str, identity: dict[str, Any], token: str | bool | None) -> nn.Module:
    """Load the model to query with from a Hub id or folder, with the Auto class that the manifest names.

    Raises:
        [`~lorif_hf.errors.ModelMismatchError`]: the manifest names none that is known.
    """
    import transformers

    auto_class = identity.get("auto_class")
    # Only what a registered task names: the manifest may come from anybody.
    if not isinstance(auto_class, str) or auto_class not in {task.auto_class for task in TASKS}:
        raise ModelMismatchError(
            f"The index was made with a {identity.get('model_class')}, which no known Auto class loads: load the "
            "model yourself and pass it instead of its name."
        )
    if identity.get("adapter"):
        import peft

        return getattr(peft, auto_class.replace("AutoModel", "AutoPeftModel")).from_pretrained(name, token=token)
    return getattr(transformers, auto_class).from_pretrained(name, token=token)

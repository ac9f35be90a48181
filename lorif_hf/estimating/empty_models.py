"""Models without weights, on the meta device: laid out by the config that a folder or a repo on the Hub has."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ModelMismatchError


_HEADS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""By PEFT's name of a task, the classes of the models that it adapts."""


def empty_model(name: str, token: str | bool | None = None) -> nn.Module:
    """The model of a Hub id or folder on the meta device: its config is read, its weights are not. Of an adapter, the
    base model is laid out by its own config, and the adapter on top.

    Raises:
        [`~lorif_hf.errors.ModelMismatchError`]: it has no config, or one that names no class that transformers has, or
            an adapter of a base model that has none.
    """
    adapter = adapter_config(name, token)
    return _base(name, token) if adapter is None else _adapted(name, adapter, token)


def adapter_config(name: str, token: str | bool | None) -> Any:
    """PEFT's config of an adapter; `None`: it is none.

    Raises:
        [`~lorif_hf.errors.ModelMismatchError`]: it cannot be read, or there is no PEFT to read it.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    folder = Path(name)
    try:
        if folder.is_dir():
            path: Any = folder if (folder / "adapter_config.json").is_file() else None
        else:
            path = find_adapter_config_file(name, token=token)
    except (ValueError, OSError):
        return None  # nothing of that name: what is missing is told where its config is read
    if path is None:
        return None
    try:
        from peft import PeftConfig

        return PeftConfig.from_pretrained(name, token=token)
    except ImportError as error:
        raise ModelMismatchError(f"{name} is an adapter: pip install peft to lay it out ({error}).") from error
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ModelMismatchError(f"The adapter_config.json of {name} cannot be read ({error}).") from error


def base_of(name: str, adapter: Any) -> str:
    """The name of the model that an adapter is of.

    Raises:
        [`~lorif_hf.errors.ModelMismatchError`]: the adapter does not say it.
    """
    base = adapter.base_model_name_or_path
    if not base:
        raise ModelMismatchError(f"The adapter_config.json of {name} does not say base_model_name_or_path.")
    return str(base)


def model_class_of(name: str, token: str | bool | None, adapter: Any = None) -> tuple[Any, Any]:
    """The class of transformers that a model was trained as, and its config.

    Args:
        name (`str`): Hub id or folder; of an adapter, that of its base model.
        token (`str` or `bool`, *optional*): for the Hub.
        adapter (`PeftConfig`, *optional*): says the task, whose Auto class it is; by default the class that the config
            names.

    Raises:
        [`~lorif_hf.errors.ModelMismatchError`]: there is no config, or transformers has no such class.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, token=token)
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())
        raise ModelMismatchError(f"No model config is found at {name} ({said}).") from error
    head = None if adapter is None else _HEADS.get(adapter.task_type)
    classes = [head] if head is not None else config.architectures or ["AutoModelForCausalLM"]
    named = (getattr(transformers, known, None) for known in classes)
    model_class = next((known for known in named if known is not None), None)
    if model_class is None:
        raise ModelMismatchError(
            f"transformers has no {', '.join(config.architectures)}, which the config of {name} names: its layers "
            "cannot be laid out without its own code."
        )
    return model_class, config


def _adapted(name: str, adapter: Any, token: str | bool | None) -> nn.Module:
    from peft import get_peft_model

    base = base_of(name, adapter)
    try:
        model = _base(base, token, adapter)
    except ModelMismatchError as error:
        raise ModelMismatchError(f"{name} is an adapter of {base}, which cannot be laid out. {error}") from error
    adapter.inference_mode = False  # what was trained, though it was saved to be used
    try:
        with torch.device("meta"):
            adapted: nn.Module = get_peft_model(model, adapter)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ModelMismatchError(f"The adapter {name} does not go onto {base} ({error}).") from error
    return adapted


def _base(name: str, token: str | bool | None, adapter: Any = None) -> nn.Module:
    model_class, config = model_class_of(name, token, adapter)
    build = getattr(model_class, "from_config", None) or model_class._from_config
    try:
        with torch.device("meta"):
            model: nn.Module = build(config)
    except ValueError as error:
        raise ModelMismatchError(f"No layers are laid out by the config of {name} ({error}).") from error
    return model

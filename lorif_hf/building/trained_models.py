"""The model to be indexed, loaded by name: by the class that its config names, in the dtype that it was trained in."""

from typing import Any

from torch import nn

from ..errors import ModelMismatchError


# By PEFT's name of a task, the class of the models that it adapts; else the one that the base model's config names.
_HEADS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
_CANNOT = (ImportError, OSError, ValueError, RuntimeError, KeyError, TypeError)  # what loading raises


def trained_model(name: str, token: str | bool | None = None) -> tuple[nn.Module, Any]:
    """A model by its Hub id or folder, and its processing class, where it has one.

    Of an adapter, the base model is loaded first and the adapter over it, its weights trainable, as they were.

    Args:
        name (`str`): Hub id or folder.
        token (`str` or `bool`, *optional*): for the Hub.

    Raises:
        [`~lorif_hf.errors.ModelMismatchError`]: there is no such model, or no class of transformers for it.
    """
    import transformers

    adapter = _adapter_config(name, token)
    base = name if adapter is None else adapter.base_model_name_or_path
    revision = None if adapter is None else adapter.revision
    way_out = "Expected a folder with config.json and weights, or a Hub id; or load the model yourself and pass it."
    if not base:
        raise ModelMismatchError(f"The adapter '{name}' does not say which base model it is of. {way_out}")
    try:
        config = transformers.AutoConfig.from_pretrained(base, revision=revision, token=token)
    except _CANNOT as error:
        raise ModelMismatchError(f"There is no model at '{base}' ({_line(error)}). {way_out}") from error
    head = None if adapter is None else _HEADS.get(str(getattr(adapter.task_type, "value", adapter.task_type)))
    classes = [head] if head else config.architectures or []
    factory = next((getattr(transformers, known) for known in classes if hasattr(transformers, known)), None)
    if factory is None:
        raise ModelMismatchError(
            f"transformers has no class {', '.join(classes) or 'that the config names'} to load '{base}' with: load "
            "the model yourself and pass it."
        )
    try:
        model: nn.Module = factory.from_pretrained(base, revision=revision, token=token, dtype="auto")
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, name, token=token, is_trainable=True)
    except _CANNOT as error:
        raise ModelMismatchError(f"'{name}' cannot be loaded ({_line(error)}). {way_out}") from error
    return model, _processing_class([name] if adapter is None else [name, base], token)


def _adapter_config(name: str, token: str | bool | None) -> Any:
    """PEFT's config of an adapter; `None`: it is none."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(name, token=token) is None:
            return None
    except _CANNOT:
        return None  # nothing of that name: told where the model's config is read
    try:
        from peft import PeftConfig

        return PeftConfig.from_pretrained(name, token=token)
    except _CANNOT as error:
        raise ModelMismatchError(
            f"'{name}' is an adapter, which cannot be loaded ({_line(error)}). It needs PEFT: pip install peft."
        ) from error


def _processing_class(names: list[str], token: str | bool | None) -> Any:
    """The first that is there: a tokenizer, image processor, feature extractor or what holds several."""
    from transformers import AutoProcessor

    for name in names:
        try:
            loaded = AutoProcessor.from_pretrained(name, token=token)
        except Exception:  # none, or of a library that is not here: the index goes without
            continue
        # Where there is no file of a tokenizer, transformers makes one that knows no word.
        if getattr(getattr(loaded, "tokenizer", loaded), "vocab_size", None) != 0:
            return loaded
    return None


def _line(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"

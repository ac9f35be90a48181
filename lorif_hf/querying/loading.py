"""The model to query with, loaded by name: as it was trained, with its adapters, quantised as it was."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import ModelMismatchError, out_of_memory
from ..registry import TASKS


_DTYPES = ("float16", "bfloat16", "float32", "float64")

# What of bitsandbytes' settings is taken from an index, which may come from anybody.
_QUANTIZATION: dict[str, type | tuple[type, ...]] = {
    "load_in_4bit": bool,
    "load_in_8bit": bool,
    "llm_int8_threshold": (int, float),
    "bnb_4bit_compute_dtype": str,
    "bnb_4bit_quant_type": str,
    "bnb_4bit_quant_storage": str,
    "bnb_4bit_use_double_quant": bool,
}


def load_model(
    name: str, identity: Mapping[str, Any], token: str | bool | None, module_names: Iterable[str] = ()
) -> nn.Module:
    """Load the model to query with, by the Auto class that the manifest names.

    Of an index of a PEFT model, `name` is that of the adapter: its base model is loaded first, in the dtype and
    quantised as it was recorded, then the adapters over it, under their names in the index.

    Args:
        name (`str`): Hub id or folder.
        identity (`Mapping`): of the model, as the manifest has it.
        token (`str` or `bool`, *optional*): for the Hub.
        module_names (`Iterable[str]`): of the tracked modules, which say which of several adapters are active.

    Raises:
        [`~lorif_hf.errors.ModelMismatchError`]: the manifest names no class that is known; there is no model of that
            name; there is no adapter, or no base model of it.
    """
    import transformers

    auto_class = identity.get("auto_class")
    # Only what a registered task names: the manifest may come from anybody.
    if not isinstance(auto_class, str) or auto_class not in {task.auto_class for task in TASKS}:
        raise ModelMismatchError(
            f"The index was made with a {identity.get('model_class')}, which no known Auto class loads: load the "
            "model yourself and pass it instead of its name."
        )
    factory = getattr(transformers, auto_class)
    options = {"token": token, **_form(identity)}
    adapters = identity.get("adapter")
    if not isinstance(adapters, dict) or not adapters:
        try:
            model: nn.Module = factory.from_pretrained(name, **options)
        except Exception as error:  # each library that reads a part of a model has its own
            if out_of_memory(error):
                raise
            raise ModelMismatchError(
                f"No model can be loaded from {name} ({_line(error)}). Expected a folder with config.json and "
                "weights, or a Hub id; for a private one log in (hf auth login) or pass token=."
            ) from error
        return model
    return _adapted(name, factory, options, list(adapters), list(module_names), token)


def _form(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The dtype and the quantisation of the weights, as arguments of `from_pretrained`."""
    form: dict[str, Any] = {}
    if identity.get("dtype") in _DTYPES:
        form["dtype"] = identity["dtype"]
    settings = identity.get("quantization")
    if isinstance(settings, dict) and settings.get("quant_method") == "bitsandbytes":
        from transformers import BitsAndBytesConfig

        kept = {key: settings[key] for key, kind in _QUANTIZATION.items() if isinstance(settings.get(key), kind)}
        form["quantization_config"] = BitsAndBytesConfig(**kept)
    return form


def _adapted(
    name: str,
    factory: Any,
    options: dict[str, Any],
    adapters: list[str],
    module_names: list[str],
    token: str | bool | None,
) -> nn.Module:
    """A base model with its adapters."""
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(name, token=token)
    except (OSError, ValueError) as error:
        raise ModelMismatchError(
            f"The index is of a model with the adapter '{adapters[0]}', and '{name}' holds none ({_line(error)}). "
            "Pass the adapter's Hub id or folder, or load the model yourself and pass it."
        ) from error
    base_name = config.base_model_name_or_path
    way_out = f"Load it yourself and pass PeftModel.from_pretrained(base_model, '{name}')."
    if not base_name:
        raise ModelMismatchError(f"The adapter '{name}' does not say which base model it is of. {way_out}")
    try:
        base = factory.from_pretrained(base_name, revision=config.revision, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ModelMismatchError(
            f"The base model '{base_name}' of the adapter '{name}' cannot be loaded ({_line(error)}). {way_out}"
        ) from error
    _resize(base, name, token)
    # PEFT saves the adapter "default" in the folder itself, and others in folders of their names.
    first = "default" if "default" in adapters else adapters[0]
    folders = {adapter: None if adapter == "default" else adapter for adapter in adapters}
    if len(adapters) == 1:
        folders = {first: None}
    try:
        model = PeftModel.from_pretrained(base, name, adapter_name=first, subfolder=folders[first], token=token)
        for adapter in adapters:
            if adapter != first:
                model.load_adapter(name, adapter_name=adapter, subfolder=folders[adapter], token=token)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelMismatchError(
            f"The adapter '{name}' does not go with its base model '{base_name}' ({_line(error)}). {way_out}"
        ) from error
    active = [adapter for adapter in adapters if any(n.endswith(f".{adapter}") for n in module_names)]
    if len(adapters) > 1 and active:
        model.base_model.set_adapter(active)  # type: ignore[operator]  # which takes several, unlike the model's own
    loaded: nn.Module = model.eval()
    return loaded


def _resize(base: Any, name: str, token: str | bool | None) -> None:
    """Make room for the tokens that were added before the training, as PEFT does: a tokenizer that lies beside the
    adapter knows them."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, token=token)
        table = base.get_input_embeddings().weight
    except Exception:  # there is none, or it is of something else than tokens
        return
    if len(tokenizer) > len(table):
        base.resize_token_embeddings(len(tokenizer))


def _line(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"

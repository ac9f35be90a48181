"""Is the query's model the one that was indexed?"""

import warnings

from torch import nn

from ..errors import ModelMismatchError
from ..layers import MatrixShape
from ..layers.adapters import adapted_layer, inactive_adapters, lora_layers
from ..layers.modules import TrackedModule, modules_by_name
from ..recording.identity import identify
from ..storage.layout import Manifest


_DIFFERENCES = {
    "weights_sha256": "the recorded layers",
    "other_weights": "parameters outside of the recorded layers",
    "adapter": "the adapters' settings, or which of them are active,",
}


def matching_modules(model: nn.Module, manifest: Manifest, strict: bool) -> list[TrackedModule]:
    """The model's layers that the index records, or an error that says how the model differs."""
    expected = {
        entry.name: MatrixShape(entry.in_features, entry.out_features, entry.in_width, entry.out_width)
        for entry in manifest.modules
    }
    # By name, not by the manifest's pattern: a pattern from the Hub could be one that takes for ever.
    followed = {entry.name for entry in manifest.modules if entry.followed}
    kinds = {entry.name: (entry.kind, entry.parameter) for entry in manifest.modules}
    present = modules_by_name(model, kinds, followed)
    shapes = {name: tracked.shape for name, tracked in present.items()}
    if shapes != expected:
        different = [name for name in expected if shapes.get(name) != expected[name]]
        name = different[0]
        others = _other_adapters(model, name)
        if others:
            raise ModelMismatchError(
                f"The index records '{name}', of an adapter that the query's model calls '{others[0]}': load it under "
                f"the name in the index, PeftModel.from_pretrained(base, ..., adapter_name='{name.split('.')[-1]}')."
            )
        raise ModelMismatchError(
            f"The index was made with another architecture ({manifest.model.get('model_class')}): {len(different)} "
            f"module(s) differ, first '{name}': indexed {_shown(expected[name])}, the query's model has "
            f"{_shown(shapes[name]) if name in shapes else 'no such module'}. Query with the model that was indexed."
        )
    for adapter, active in inactive_adapters(model, expected).items():
        raise ModelMismatchError(
            f"The index records the adapter '{adapter}', which is not active in the query's model (active: "
            f"{', '.join(active) or 'none'}): call model.set_adapter('{adapter}'), or enable its adapters."
        )
    modules = [present[name] for name in expected]
    queried = identify(model, modules).to_dict()
    different = [
        key for key in ("weights_sha256", "other_weights", "adapter") if queried[key] != manifest.model.get(key)
    ]
    if different:
        problem = (
            "The weights of the query's model are not those that were indexed "
            f"({_DIFFERENCES[different[0]]} differ; the index is of "
            f"{manifest.model.get('name') or manifest.model.get('model_class')}): its training went on, "
            "another checkpoint was loaded, or the dtype differs."
        )
        if any(layer.merged for layer in lora_layers(model).values()):
            problem += " Its adapter is merged into it: model.unmerge_adapter() takes it out again."
        if strict:
            raise ModelMismatchError(f"{problem} Load the indexed model, or pass strict=False to go on all the same.")
        warnings.warn(f"{problem} The scores are those of another model.", stacklevel=4)
    return modules


def _shown(shape: MatrixShape) -> str:
    """I and O, and how much of them is kept where that is not all."""
    kept = "" if shape.widths == shape.features else f" (at most {shape.widths} kept)"
    return f"{shape.features}{kept}"


def _other_adapters(model: nn.Module, name: str) -> list[str]:
    """What the adapters of a layer are called, where the index records a LoRA matrix of another one."""
    layer = lora_layers(model).get(adapted_layer(name))
    adapters = [] if layer is None else [*layer.lora_A, *layer.lora_embedding_A]
    return [] if name.rsplit(".", maxsplit=1)[-1] in adapters else adapters

"""Which layers have the same inputs (q, k and v; gate and up): they share what is kept of that side."""

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ..layers.conv1d import Conv1D
from ..layers.linear import Linear
from ..layers.modules import TrackedModule


logger = logging.getLogger(__name__)


class _Seen:
    """Tells tensors apart, without keeping them: of a large model they would take all memory."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int | None, int]] = {}
        self._count = 0

    def number(self, tensor: Tensor) -> int:
        """The same for the same tensor, as long as it is not changed in place."""
        version = None if tensor.is_inference() else tensor._version
        reference, at, number = self._known.get(id(tensor), (None, None, 0))
        if reference is None or reference() is not tensor or at != version:
            self._count += 1
            number = self._count
            self._known[id(tensor)] = weakref.ref(tensor), version, number
        return number


def shared_inputs(
    modules: Sequence[TrackedModule], forward: Callable[[], Any], adapted: Mapping[str, nn.Module] | None = None
) -> dict[str, str]:
    """By module, the first one that gets the same tensors at every call, where there is another; of linear layers
    alone, whose inputs are what the module is called with. Those of a matrix A of LoRA are what its adapted layer is
    called with: PEFT casts them to the dtype of A, for each layer anew.

    Args:
        modules (`Sequence[TrackedModule]`): of a model.
        forward (`Callable`): takes a row through the model. What it raises is logged: then nothing is shared.
        adapted (`Mapping[str, nn.Module]`, *optional*): the layers with LoRA adapters, by name.
    """
    plain = [t for t in modules if type(t.kind) in (Linear, Conv1D) and not (t.followed or t.shared)]
    seen = _Seen()
    calls: dict[str, list[int]] = {tracked.name: [] for tracked in plain}
    with ExitStack() as held:
        for tracked in plain:

            def note(module: nn.Module, args: Any, kwargs: Any, of: list[int] = calls[tracked.name]) -> None:
                inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
                of.append(-1 if inputs is None else seen.number(inputs))

            called = _called(tracked, adapted or {})
            held.callback(called.register_forward_pre_hook(note, with_kwargs=True).remove)
        try:
            forward()
        except Exception as error:
            logger.debug("Which layers share their inputs cannot be seen: %s", error)
            return {}
    first: dict[tuple[Any, ...], list[str]] = {}
    for tracked in plain:
        numbers = tuple(calls[tracked.name])
        if numbers and -1 not in numbers:
            key = (tracked.matrix_shape[0], tracked.weight.dtype, *numbers)
            first.setdefault(key, []).append(tracked.name)
    return {name: names[0] for names in first.values() if len(names) > 1 for name in names}


def _called(tracked: TrackedModule, adapted: Mapping[str, nn.Module]) -> nn.Module:
    """The module whose inputs are those of a layer."""
    layer, _, adapter = tracked.name.partition(".lora_A.")
    holder: Any = adapted.get(layer)
    # A variant (DoRA, aLoRA, ...) may do more to them than to cast them.
    plain = holder is not None and adapter in holder.lora_A and adapter not in getattr(holder, "lora_variant", {})
    return holder if plain else tracked.module

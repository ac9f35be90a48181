"""LoRA on the weight of a plain `nn.Linear` as a bare parameter (PEFT's `target_parameters`).

PEFT multiplies its matrices with each other there and adds the product to the weight. But what the layer is called
with and returns tells both: dA = s (dY B)^T X and dB = s dY^T (X A^T).
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..layers.adapters import adapts_weight, lora_layers, lora_matrices
from ..layers.base import first_argument
from .layer_hook import LayerHook


@contextmanager
def recorded_weight_adapters(hooks: Iterable[LayerHook], model: nn.Module) -> Iterator[None]:
    """While it is entered, the hooks of such matrices are told of the calls of the layers below.

    Args:
        hooks (`Iterable[LayerHook]`): of any layers; others are passed over.
        model (`nn.Module`): where the adapters are.
    """
    by_weight = {id(hook.tracked.weight): hook for hook in hooks}
    with ExitStack() as held:
        for layer in lora_layers(model).values():
            for adapter, side, matrix in lora_matrices(layer) if adapts_weight(layer) else ():
                hook = by_weight.get(id(matrix.weight))
                if hook is not None:
                    call = _Matrix(hook, layer, adapter, side)
                    below = layer.get_base_layer().register_forward_hook(call, with_kwargs=True)
                    held.callback(below.remove)
        yield


@dataclass(frozen=True)
class _Matrix:
    """A matrix of such an adapter, as the forward hook of the layer below.

    Args:
        hook (`LayerHook`): of the matrix.
        layer (`nn.Module`): the adapted layer of PEFT.
        adapter (`str`): the adapter.
        side (`str`): `"lora_A"` or `"lora_B"`.
    """

    hook: LayerHook
    layer: Any
    adapter: str
    side: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Any:
        inputs, apart = first_argument(args, kwargs).detach(), self.hook.batch.per_example
        a, b = (getattr(self.layer, side)[self.adapter].weight.to(inputs.dtype) for side in ("lora_A", "lora_B"))
        scale = self.layer.scaling[self.adapter]
        if self.side == "lora_B":
            return self.hook.see(apart(scale * inputs @ a.mT), output, apart)
        return self.hook.see(apart(inputs), output, lambda gradient: apart(scale * gradient.to(b.dtype) @ b))

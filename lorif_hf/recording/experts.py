"""The recording of fused experts: an experts implementation of our own, which sees each product with its tokens.

Others hand the tokens of an expert to it without telling whose they are. Here every token keeps its place, so that the
gradients are told apart by example.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..layers.adapters import adapts_experts, lora_layers, lora_matrices
from ..layers.experts import ALL_EXPERTS_FUNCTIONS, EXPERTS, slots
from .layer_hook import LayerHook


NAME = "lorif_hf"
"""What the implementation is called in transformers' registry."""

Observer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor | None]
"""Of a product: its inputs (n k, I), the experts (n, k), the stack, and the output (n k, O); what takes its place."""

_observers: WeakKeyDictionary[nn.Module, list[tuple[str, Observer]]] = WeakKeyDictionary()


@contextmanager
def recorded_experts(hooks: Iterable[LayerHook], model: nn.Module) -> Iterator[None]:
    """While it is entered, the experts modules of these layers compute what they always do, and tell the hooks.

    A model's modules share a config, and models may: a module gets a copy of its own instead.

    Args:
        hooks (`Iterable[LayerHook]`): of stacks of experts, their biases, and LoRA matrices on them; others are
            passed over.
        model (`nn.Module`): where the adapters are.

    Raises:
        [`~lorif_hf.errors.UnsupportedModuleError`]: the experts are spread over several devices.
    """
    with ExitStack() as held:
        for hook, module, parameter, observer in [*_of_stacks(hooks), *_of_adapters(hooks, model)]:
            if getattr(module, "_is_expert_parallel", False):
                raise UnsupportedModuleError(
                    f"Module '{hook.tracked.name}' is a part of experts that are spread over several devices "
                    "(expert parallelism), where no process sees all gradients. Load the model without "
                    "enable_expert_parallel, or leave it out with exclude_modules."
                )
            if module not in _observers:
                held.callback(_observers.pop, module)
                _observers[module] = []
                config: Any = module.config
                held.callback(setattr, module, "config", config)
                own = copy.copy(config)
                own._experts_implementation_internal = NAME
                module.config = own
            _observers[module].append((parameter, observer))
        yield


def _of_stacks(hooks: Iterable[LayerHook]) -> Iterator[tuple[LayerHook, nn.Module, str, Observer]]:
    """The hooks of stacks and their biases: whose they are, and what they make of a product."""
    for hook in hooks:
        tracked = hook.tracked
        if not isinstance(tracked.kind, EXPERTS):
            continue

        def observe(
            inputs: Tensor, experts: Tensor, stack: Tensor, output: Tensor, hook: LayerHook = hook
        ) -> Tensor | None:
            module, parameter, kind = hook.tracked.module, hook.tracked.parameter, hook.tracked.kind
            tokens = kind.tokens(module, parameter, (inputs, experts), {}, hook.batch)
            return hook.see(tokens.inputs, output, tokens.output_gradients)

        for module in (tracked.module, *tracked.shared):
            yield hook, module, tracked.parameter.removesuffix("_bias"), observe


def _of_adapters(hooks: Iterable[LayerHook], model: nn.Module) -> Iterator[tuple[LayerHook, nn.Module, str, Observer]]:
    """The hooks of LoRA matrices on stacks."""
    by_weight = {id(hook.tracked.weight): hook for hook in hooks}
    for layer in lora_layers(model).values():
        for adapter, side, matrix in lora_matrices(layer) if adapts_experts(layer) else ():
            hook = by_weight.get(id(matrix.weight))
            if hook is not None:
                yield hook, layer.get_base_layer(), layer.parameter_name, _Adapter(hook, layer, adapter, side)


@dataclass(frozen=True)
class _Adapter:
    """A matrix of a LoRA adapter on a stack: y = x (W[e] + s B[e] A[e])^T of a token that goes to expert e.

    PEFT keeps A as (E r, I), expert by expert, and B as (O, r E), the experts of each direction side by side.

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

    def __call__(self, inputs: Tensor, experts: Tensor, stack: Tensor, output: Tensor) -> Tensor | None:
        scale, batch = self.layer.scaling[self.adapter], self.hook.batch
        a, b = (getattr(self.layer, side)[self.adapter].weight.to(stack.dtype) for side in ("lora_A", "lora_B"))
        a, b = a.unflatten(0, (len(stack), -1)), b.unflatten(1, (-1, len(stack))).permute(2, 1, 0)
        if self.side == "lora_B":
            hidden = scale * products(inputs.detach(), experts, a.mT)  # (n k, r)
            placed = slots(_placed(hidden, experts, len(stack)).mT.flatten(1), experts, batch)
            return self.hook.see(placed, output, lambda gradient: slots(gradient, experts, batch))

        def output_gradients(gradient: Tensor) -> Tensor | None:
            hidden = scale * products(gradient.to(stack.dtype), experts, b.mT)
            return slots(_placed(hidden, experts, len(stack)).flatten(1), experts, batch)

        return self.hook.see(slots(inputs, experts, batch), output, output_gradients)


def _placed(values: Tensor, experts: Tensor, count: int) -> Tensor:
    """(n k, r), each in the row of its expert: (n k, E, r)."""
    placed = values.new_zeros(len(values), count, values.shape[1])
    return placed.index_put_((torch.arange(len(values), device=values.device), experts.flatten()), values)


def _experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What `batched_mm_experts_forward` of transformers computes, expert by expert.

    Args:
        module (`nn.Module`): the experts.
        hidden_states (`Tensor`): (n, H).
        top_k_index (`Tensor`): the experts of each token, integers (n, k).
        top_k_weights (`Tensor`): what they count for, (n, k).

    Returns:
        `Tensor`: (n, H).
    """
    experts = top_k_index.reshape(-1, top_k_index.shape[-1]).long()
    inputs = hidden_states.repeat_interleave(experts.shape[1], dim=0)
    hidden = _product(module, "gate_up_proj" if module.has_gate else "up_proj", inputs, experts)
    hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
    hidden = _product(module, "down_proj", hidden, experts)
    if getattr(module, "has_post_expert_norm", False):
        hidden = module.post_expert_norm(hidden)
    weighted = hidden * top_k_weights.reshape(-1, 1)
    return weighted.unflatten(0, experts.shape).sum(dim=1).to(hidden_states.dtype)


def _product(module: Any, name: str, inputs: Tensor, experts: Tensor) -> Tensor:
    """The product of each slot's input, (n k, I), with its expert's matrix, (n k, O); the observers are told of it."""
    stack = getattr(module, name)
    output = products(inputs, experts, stack if module.is_transposed else stack.mT)
    if module.has_bias:
        output = output + getattr(module, f"{name}_bias")[experts.flatten()]
    for parameter, observe in _observers.get(module, ()):
        if parameter == name:
            replaced = observe(inputs, experts, stack, output)
            output = output if replaced is None else replaced
    return output


def products(inputs: Tensor, experts: Tensor, stack: Tensor) -> Tensor:
    """The product of each slot's input with its expert's matrix.

    Args:
        inputs (`Tensor`): (n k, I).
        experts (`Tensor`): int64 (n, k).
        stack (`Tensor`): (E, I, O).

    Returns:
        `Tensor`: (n k, O).
    """
    order = torch.argsort(experts.flatten(), stable=True)
    counts = torch.bincount(experts.flatten(), minlength=len(stack)).tolist()
    parts = [
        part @ stack[expert]
        for expert, part in enumerate(inputs.to(stack.dtype)[order].split(counts))
        if len(part) or not expert
    ]
    return torch.cat(parts)[torch.argsort(order)]


if ALL_EXPERTS_FUNCTIONS is not None:
    ALL_EXPERTS_FUNCTIONS.register(NAME, _experts)

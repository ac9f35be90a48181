"""The recording of fused experts: an experts implementation of our own, which sees each product with its tokens.

Others hand the tokens of an expert to it without telling whose they are. Here every token keeps its place, so that the
gradients are told apart by example.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..layers.experts import ALL_EXPERTS_FUNCTIONS
from .layer_hook import LayerHook


NAME = "lorif_hf"
"""What the implementation is called in transformers' registry."""

_hooks: WeakKeyDictionary[nn.Module, dict[str, LayerHook]] = WeakKeyDictionary()


@contextmanager
def recorded_experts(hooks: Iterable[LayerHook]) -> Iterator[None]:
    """While it is entered, the experts modules of these layers compute what they always do, and tell the hooks.

    A model's modules share a config, and models may: a module gets a copy of its own instead.

    Raises:
        [`~lorif_hf.errors.UnsupportedModuleError`]: the experts are spread over several devices.
    """
    with ExitStack() as held:
        for hook in hooks:
            for module in (hook.tracked.module, *hook.tracked.shared):
                if getattr(module, "_is_expert_parallel", False):
                    raise UnsupportedModuleError(
                        f"Module '{hook.tracked.name}' is a part of experts that are spread over several devices "
                        "(expert parallelism), where no process sees all gradients. Load the model without "
                        "enable_expert_parallel, or leave it out with exclude_modules."
                    )
                if module not in _hooks:
                    held.callback(_hooks.pop, module)
                    _hooks[module] = {}
                    config: Any = module.config
                    held.callback(setattr, module, "config", config)
                    own = copy.copy(config)
                    own._experts_implementation_internal = NAME
                    module.config = own
                _hooks[module][hook.tracked.parameter] = hook
        yield


def _experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What `batched_mm_experts_forward` of transformers computes, expert by expert.

    Args:
        module (`nn.Module`): the experts.
        hidden_states (`Tensor`): (n, H).
        top_k_index (`Tensor`): the experts of each token, int64 (n, k).
        top_k_weights (`Tensor`): what they count for, (n, k).

    Returns:
        `Tensor`: (n, H).
    """
    count, slots = top_k_index.shape
    inputs = hidden_states.repeat_interleave(slots, dim=0)
    hidden = _product(module, "gate_up_proj" if module.has_gate else "up_proj", inputs, top_k_index)
    hidden = module._apply_gate(hidden) if module.has_gate else module.act_fn(hidden)
    hidden = _product(module, "down_proj", hidden, top_k_index)
    if getattr(module, "has_post_expert_norm", False):
        hidden = module.post_expert_norm(hidden)
    weighted = hidden * top_k_weights.reshape(-1, 1)
    return weighted.view(count, slots, -1).sum(dim=1).to(hidden_states.dtype)


def _product(module: Any, name: str, inputs: Tensor, experts: Tensor) -> Tensor:
    """The product of each slot's input, (n k, I), with its expert's matrix, and the hooks told of it: (n k, O)."""
    weight = getattr(module, name)
    order = torch.argsort(experts.flatten(), stable=True)
    counts = torch.bincount(experts.flatten(), minlength=len(weight)).tolist()
    parts = [
        part @ weight[expert] if module.is_transposed else F.linear(part, weight[expert])
        for expert, part in enumerate(inputs.to(weight.dtype)[order].split(counts))
        if len(part) or not expert
    ]
    output = torch.cat(parts)[torch.argsort(order)]
    if module.has_bias:
        output = output + getattr(module, f"{name}_bias")[experts.flatten()]
    for parameter in (name, f"{name}_bias"):
        hook = _hooks.get(module, {}).get(parameter)
        if hook is None:
            continue
        if not torch.is_grad_enabled():
            hook.see(None, output, lambda gradient: None)
            continue
        tokens = hook.tracked.kind.tokens(module, parameter, (inputs, experts), {}, hook.batch)
        replaced = hook.see(tokens.inputs, output, tokens.output_gradients)
        output = output if replaced is None else replaced
    return output


if ALL_EXPERTS_FUNCTIONS is not None:
    ALL_EXPERTS_FUNCTIONS.register(NAME, _experts)

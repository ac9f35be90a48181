"""What a forward pass tells of a model without weights: which layers share their inputs, and what the pass takes.

Tensors on the meta device have a shape and no numbers, so that nothing is computed and no memory is taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..layers.adapters import lora_layers
from ..layers.experts import dispatches
from ..layers.modules import TrackedModule
from ..recording.shared_inputs import shared_inputs


_TOKENS = 16  # of the row: what grows with its length is known from few of them
_EACH = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")  # a config's experts of a token
_OF_LOGITS = 8  # bytes: in float32, and their gradient


@dataclass(frozen=True)
class ForwardPass:
    """What the forward pass of an example takes.

    Args:
        shared (`Mapping[str, str]`): modules that have the same inputs as others, and the first of those.
        flops (`float`): operations.
        attention_flops (`float`): those of them that are attention's between tokens.
        activations (`int`): bytes that autograd keeps where all weights are frozen, and those of the logits.
        experts (`int`): of a mixture, how many experts a token goes to; 1 elsewhere.
        problem (`str` or `None`): why nothing could be seen, so that these are guesses by the parameters.
    """

    shared: Mapping[str, str] = field(default_factory=dict)
    flops: float = 0.0
    attention_flops: float = 0.0
    activations: int = 0
    experts: int = 1
    problem: str | None = None


def forward_pass(model: nn.Module, modules: Sequence[TrackedModule], length: int) -> ForwardPass:
    """Take a row of `length` tokens (or an image, of a model of images) through a model without its numbers.

    Args:
        model (`nn.Module`): with weights or without; its weights are not touched.
        modules (`Sequence[TrackedModule]`): of which is asked who shares inputs.
        length (`int`): T.
    """
    problem = "no inputs are known for it"
    for inputs in _inputs(model):
        tokens = next((value.shape[1] for value in inputs.values() if value.dtype == torch.int64), None)
        try:
            return _taken(model, modules, inputs, 1.0 if tokens is None else length / tokens)
        except Exception as error:  # of whatever code a model is made
            problem = f"{type(error).__name__}: {error}"
    return _guessed(model, modules, length, problem)


def _taken(model: nn.Module, modules: Sequence[TrackedModule], inputs: dict[str, Tensor], times: float) -> ForwardPass:
    saved: dict[int, Tensor] = {}  # by storage; without numbers, to keep them costs nothing
    experts: list[int] = []
    beside = 0

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def follow(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and not output.requires_grad:
            output.requires_grad_(True)  # as a recording begins its graph

    failed: list[Exception] = []

    tensors = _without_numbers(model)
    weights = {tensor.untyped_storage()._cdata for tensor in tensors.values()}

    def forward() -> None:
        nonlocal beside
        try:
            output = torch.func.functional_call(model, tensors, (), inputs)
            logits = getattr(output, "logits", None)
            beside += _OF_LOGITS * logits.numel() if isinstance(logits, Tensor) else 0
        except Exception as error:
            failed.append(error)
            raise

    with ExitStack() as held:
        held.enter_context(torch.enable_grad())
        held.enter_context(_evaluating(model))
        stacks = held.enter_context(_empty_experts(model, experts))
        for tracked in modules:
            held.callback(tracked.module.register_forward_hook(follow).remove)
        held.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        counter = held.enter_context(FlopCounterMode(display=False))
        held.enter_context(torch.device("meta"))
        shared = shared_inputs(modules, forward, lora_layers(model))
    if failed:
        raise failed[0]
    attention = other = 0.0
    for operation, count in counter.get_flop_counts().get("Global", {}).items():
        if any(word in str(operation) for word in ("attention", "bmm")):
            attention += float(count)
        else:
            other += float(count)
    tokens = next((value.shape[1] for value in inputs.values() if value.dtype == torch.int64), 1)
    each = max(experts, default=1)
    for stack in stacks:
        # What the stacks would have computed: a token meets as many of their matrices as it has experts.
        of_token = sum(p.numel() / len(p) for p in stack.parameters(recurse=False) if p.dim() == 3)
        other += 2.0 * tokens * each * of_token
        widest = sum(p.shape[-1] + p.shape[-2] for p in stack.parameters(recurse=False) if p.dim() == 3)
        beside += tokens * each * widest * next(stack.parameters()).element_size()
    activations = beside + sum(t.untyped_storage().nbytes() for at, t in saved.items() if at not in weights)
    return ForwardPass(
        shared, times * (other + times * attention), times**2 * attention, int(times * activations), each
    )


def _guessed(model: nn.Module, modules: Sequence[TrackedModule], length: int, problem: str) -> ForwardPass:
    """What the parameters alone say: two operations for each that a token meets."""
    config: Any = getattr(model, "config", None)
    each = next((value for name in _EACH if isinstance(value := getattr(config, name, None), int)), 1)
    stacked = [p for m in model.modules() if dispatches(m) for p in m.parameters(recurse=False) if p.dim() == 3]
    idle = sum(stack.numel() * max(0, len(stack) - each) // len(stack) for stack in stacked)
    parameters = sum(parameter.numel() for parameter in model.parameters()) - idle
    widths = sum(sum(tracked.shape.widths) for tracked in modules)
    size = next((p.element_size() for p in model.parameters() if p.is_floating_point()), 4)
    kept = 2 * length * widths * size
    return ForwardPass({}, 2.0 * parameters * length, 0.0, kept, each if stacked else 1, problem)


def _inputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the model may want to be called with, on the meta device: a row of a few tokens, or an image."""
    config: Any = getattr(model, "config", None)

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device="meta")

    if getattr(model, "main_input_name", "input_ids") == "pixel_values" or hasattr(config, "patch_size"):
        size, channels = getattr(config, "image_size", 224), getattr(config, "num_channels", 3)
        sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        yield {"pixel_values": zeros(1, channels, *sides)}
    ids = zeros(1, _TOKENS, dtype=torch.int64)
    if getattr(config, "is_encoder_decoder", False):
        yield {"input_ids": ids, "decoder_input_ids": zeros(1, _TOKENS, dtype=torch.int64)}
        mel = getattr(config, "num_mel_bins", None)
        if mel is not None:
            frames = 2 * getattr(config, "max_source_positions", 1500)
            yield {"input_features": zeros(1, mel, frames), "decoder_input_ids": ids}
    yield {"input_ids": ids}


def _without_numbers(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model, on the meta device and frozen; tied ones are one."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    twins: dict[int, Tensor] = {}
    return {name: twins.setdefault(id(t), t.detach().to("meta")) for name, t in tensors}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """As rows are recorded: with dropout, adapters of one layer would not share their inputs."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _empty_experts(model: nn.Module, seen: list[int]) -> Iterator[list[nn.Module]]:
    """Fused experts give back zeros: who goes where depends on numbers, which there are none of."""

    def empty(hidden_states: Tensor, top_k_index: Tensor, *others: Any, **named: Any) -> Tensor:
        seen.append(top_k_index.shape[-1])
        return torch.empty_like(hidden_states)

    stacks = [module for module in model.modules() if dispatches(module)]
    try:
        for stack in stacks:
            stack.forward = empty  # type: ignore[method-assign]
        yield stacks
    finally:
        for stack in stacks:
            stack.__dict__.pop("forward", None)

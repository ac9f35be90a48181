"""The hooks on a model's modules, as they were before it was recorded."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks")
# Of transformers' enable_input_require_grads, and whether it has hooked what a model puts out beside its logits (those
# of a mixture's routers): without the hooks it would find none.
_HANDLES = ("_require_grads_hook", "_require_grads_hooks", "_output_capturing_hooks_installed")


@contextmanager
def hooks_restored(model: nn.Module) -> Iterator[None]:
    """Restore every module's forward hooks, and transformers' handles of its own.

    A loss may add some: DPO's, each time that the adapters were off for its reference.
    """
    before = [
        (module, {name: dict(vars(module)[name]) for name in _HOOKS if name in vars(module)})
        for module in model.modules()
    ]
    handles = [(module, {name: vars(module).get(name) for name in _HANDLES}) for module in model.modules()]
    try:
        yield
    finally:
        for module, hooks in before:
            for name, held in hooks.items():
                vars(module)[name].clear()
                vars(module)[name].update(held)
        for module, named in handles:
            for name, handle in named.items():
                if handle is None:
                    vars(module).pop(name, None)
                else:
                    vars(module)[name] = handle

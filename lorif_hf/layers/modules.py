"""A tracked module, and how modules of a model are found by name."""

import re
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..registry import LAYER_KINDS
from .base import LayerKind, MatrixShape, go_together, is_plain, kind_of


PEFT_PREFIX = "base_model.model."  # PeftModel's own wrapping; the same adapter injected by transformers lacks it


@dataclass(frozen=True)
class TrackedModule:
    """A parameter whose gradient G = X^T dY (I x O) is recorded, and the module that holds it.

    Args:
        name (`str`): qualified name in the unwrapped model: of the module where the parameter is its "weight", else of
            the parameter.
        kind (`LayerKind`): what its inputs and output gradients are.
        module (`nn.Module`): the module itself.
        parameter (`str`): what the module calls it.
        shape (`MatrixShape`): I and O.
        shared (`tuple[nn.Module, ...]`): other modules that hold the same weight: its gradient is the sum of all their
            calls.
        followed (`bool`): whether the weight is followed through the functions that it takes part in, instead of the
            module's calls.
    """

    name: str
    kind: LayerKind
    module: nn.Module
    parameter: str
    shape: MatrixShape
    shared: tuple[nn.Module, ...] = ()
    followed: bool = False

    @classmethod
    def of(
        cls,
        owner: str,
        kind: LayerKind,
        module: nn.Module,
        holders: "Holders | None" = None,
        followed: bool = False,
        parameter: str = "weight",
    ) -> "TrackedModule":
        """A parameter, of a kind that accepts it, of the module called `owner`, with those of `holders` that share
        it."""
        weight = module._parameters[parameter]
        sharing = holders.of(weight) if holders else []
        others = tuple(m for _, m in sharing if m is not module and _uses(m, weight, kind))
        followed = followed or not all(is_plain(kind, m) for m in (module, *others))
        name = tracked_name(owner, parameter)
        return cls(name, kind, module, parameter, kind.shape(module, parameter), others, followed)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(I, O)."""
        return self.shape.features

    @property
    def weight(self) -> Tensor:
        """The parameter, as the module keeps it."""
        weight: Tensor = getattr(self.module, self.parameter)
        return weight


def _uses(module: nn.Module, weight: Tensor | None, kind: LayerKind) -> bool:
    """Whether a module that holds a weight is of a kind that goes with its own, and does not only name it."""
    names = [name for name, held in module._parameters.items() if held is weight]
    return any(kind.accepts(module, name) or go_together(kind, kind_of(module, name)) for name in names)


def tracked_name(owner: str, parameter: str) -> str:
    """What a parameter of a module is called in an index."""
    return owner if parameter == "weight" else f"{owner}.{parameter}"


def owner_of(name: str, parameter: str) -> str:
    """The module of a parameter that an index calls by a name: what [`tracked_name`] was given."""
    return name if parameter == "weight" else name.removesuffix(f".{parameter}")


def unwrap(model: Any) -> Any:
    """The model inside `torch.compile`, `DataParallel` and `DistributedDataParallel` wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def base_model(model: Any) -> Any:
    """The transformers model inside a `PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Holders:
    """Which modules hold a parameter.

    Args:
        model (`nn.Module`): the unwrapped model.
    """

    def __init__(self, model: nn.Module):
        self._holders: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
        for name, module in model.named_modules():
            for parameter in {id(p): p for p in module.parameters(recurse=False)}.values():
                self._holders[id(parameter)].append((name.removeprefix(PEFT_PREFIX), module))

    def of(self, parameter: Any) -> list[tuple[str, nn.Module]]:
        """The names and modules that hold a parameter, in the model's order."""
        return self._holders.get(id(parameter), [])


def has_adapter(model: nn.Module) -> bool:
    """Whether PEFT has a part in the model. A merged one may keep the config of what it was merged with."""
    return any(type(module).__module__.startswith("peft.") for module in model.modules())


def modules_by_name(
    model: nn.Module, kinds: Mapping[str, tuple[str, str]], followed: Container[str] = ()
) -> dict[str, TrackedModule]:
    """The layers that the model has and that their kinds accept, in the order asked for.

    Args:
        model (`nn.Module`): the unwrapped model.
        kinds (`Mapping[str, tuple[str, str]]`): name in the index -> name of its kind, and what its module calls the
            parameter.
        followed (`Container[str]`, *optional*): the modules whose weights are followed.

    Raises:
        [`~lorif_hf.errors.UnknownKindError`]: a kind is not registered.
    """
    modules = {name.removeprefix(PEFT_PREFIX): module for name, module in model.named_modules()}
    holders = Holders(model)
    present = {}
    for name, (kind_name, parameter) in kinds.items():
        kind = LAYER_KINDS.get(kind_name)
        owner = owner_of(name, parameter)
        module = modules.get(owner)
        if module is not None and module._parameters.get(parameter) is not None and kind.accepts(module, parameter):
            present[name] = TrackedModule.of(owner, kind, module, holders, name in followed, parameter)
    return present


def parameter_shapes(model: nn.Module) -> dict[str, list[int]]:
    """The shape of every parameter by name, tied ones under each of their names, as tracked modules are called."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name.removeprefix(PEFT_PREFIX): list(parameter.shape) for name, parameter in parameters}


def matches(name: str, pattern: str | Sequence[str]) -> bool:
    """PEFT's rule: a string is a regular expression for the whole name, a list holds names or name suffixes."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in pattern)

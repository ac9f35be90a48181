"""What every kind of layer tells the recorder, and how kinds are registered."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..registry import LAYER_KINDS


@dataclass(frozen=True)
class BatchShape:
    """The batch that is on its way through the model.

    Args:
        examples (`int`): B.
        tokens (`int` or `None`): T of its `input_ids`; `None` where it has none.
    """

    examples: int
    tokens: int | None

    def per_example(self, tensor: Tensor) -> Tensor | None:
        """(B, ..., features), or (B T, features) of a model that flattens its tokens, as (B, T, features).

        `None` where the examples cannot be told apart. Of a single example all of a tensor is, whatever its axes mean.
        """
        if self.examples == 1:
            return tensor.reshape(1, -1, tensor.shape[-1])
        if tensor.dim() == 2 and self.tokens is not None and self.tokens > 1:
            if len(tensor) == self.examples * self.tokens:
                return tensor.view(self.examples, self.tokens, -1)
        if tensor.dim() < 2 or len(tensor) != self.examples:
            return None
        return tensor.reshape(self.examples, -1, tensor.shape[-1])


class LayerKind(ABC):
    """A class of modules that compute y = x W (+ b), whose gradient G = X^T dY (I x O) is recorded; the bias is not.

    A kind implements every abstract method and overrides no other.

    Attributes:
        name (`str`): what an index's table of modules calls it.
        weight (`str`): the module's attribute that holds W, in whatever orientation.
        linear (`bool`): whether `target_modules="all-linear"` takes such modules; else they are named.
        forward_of (`type` or `None`): the class whose `forward` computes y = x W + b. A module of a subclass with
            another one may do something else with its weight, which is then followed instead of the module's calls
            ([`~lorif_hf.recording.following.ParameterFollower`]). `None`: calls are all there is.

    Example: `docs/extending.md` writes one.
    """

    name: ClassVar[str]
    weight: ClassVar[str]
    linear: ClassVar[bool]
    forward_of: ClassVar[type[nn.Module] | None] = None

    @abstractmethod
    def accepts(self, module: nn.Module) -> bool:
        """Whether a module is of this kind."""

    @abstractmethod
    def features(self, module: nn.Module) -> tuple[int, int]:
        """(I, O)."""

    @abstractmethod
    def as_matrix(self, weight: Tensor) -> Tensor:
        """The weight, or its gradient, as the module keeps it, in the orientation of G: (I, O)."""

    @abstractmethod
    def inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tensor | None:
        """X of a call with these arguments, (B, T, I); `None` where the examples cannot be told apart."""

    @abstractmethod
    def output_gradients(self, module: nn.Module, gradient: Tensor, batch: BatchShape) -> Tensor | None:
        """dY of the gradient with regard to the module's output, (B, T, O); `None` as above."""


def is_plain(kind: LayerKind, module: nn.Module) -> bool:
    """Whether a module computes what its kind says, no more and no less."""
    return kind.forward_of is None or type(module).forward is kind.forward_of.forward


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind that accepts a module, the last registered first; `None`: it cannot be tracked."""
    return next((kind for kind in LAYER_KINDS if kind.accepts(module)), None)


def holds_parameter(module: nn.Module, name: str) -> bool:
    """Whether a weight is a parameter of the module. One that is computed (`torch.nn.utils.parametrizations`, the old
    `weight_norm`) is none, and reading it may change what it is computed from."""
    return module._parameters.get(name) is not None


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer of a single input was called with, by position or by name."""
    argument: Tensor = args[0] if args else next(iter(kwargs.values()))
    return argument

"""What every kind of layer tells the recorder, and how kinds are registered."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..algebra.sides import Side
from ..registry import LAYER_KINDS


@dataclass(frozen=True)
class BatchShape:
    """The batch that is on its way through the model.

    Args:
        examples (`int`): B.
        tokens (`int` or `None`): T of its `input_ids`, all choices of an example together; `None` where it has none.
        sequences (`int`): how many sequences of the model's belong to each example, one after the other: choices.
    """

    examples: int
    tokens: int | None
    sequences: int = 1

    def per_example(self, tensor: Tensor) -> Tensor | None:
        """(B, ..., features), or (B T, features) of a model that flattens its tokens (or the heads of each, as
        (B T H, features)), as (B, T, features); those of an example's sequences one after the other.

        `None` where the examples cannot be told apart. Of a single example all of a tensor is, whatever its axes mean.
        """
        if self.examples == 1:
            return tensor.reshape(1, -1, tensor.shape[-1])
        if self.sequences > 1 and tensor.dim() > 1 and len(tensor) == self.examples * self.sequences:
            return tensor.reshape(self.examples, -1, tensor.shape[-1])
        if tensor.dim() == 2 and self.tokens is not None and self.tokens > 1:
            if len(tensor) and len(tensor) % (self.examples * self.tokens) == 0:
                return tensor.reshape(self.examples, -1, tensor.shape[1])
        if tensor.dim() < 2 or len(tensor) != self.examples:
            return None
        return tensor.reshape(self.examples, -1, tensor.shape[-1])


@dataclass(frozen=True)
class MatrixShape:
    """A parameter as a matrix, I x O, of which G = X^T dY is the gradient.

    Args:
        in_features (`int`): I.
        out_features (`int`): O.
        in_width, out_width (`int`, *optional*): how much of a side is kept at most, where that is less than all of it:
            an embedding's I is the vocabulary, but of no gradient more than a few rows are not zero. Outputs then come
            in blocks of that width, which are projected onto one another: those of a layer of experts.
    """

    in_features: int
    out_features: int
    in_width: int | None = None
    out_width: int | None = None

    @property
    def features(self) -> tuple[int, int]:
        """(I, O)."""
        return self.in_features, self.out_features

    @property
    def widths(self) -> tuple[int, int]:
        """What a projection with `projection_factor=1` keeps of (I, O)."""
        return self.in_width or self.in_features, self.out_width or self.out_features


@dataclass(frozen=True)
class Tokens:
    """What a call of a module does with a parameter.

    Args:
        inputs (`Side` or `None`): X, (B, T, I); `None` where the examples cannot be told apart.
        output_gradients (`Callable`): from the gradient with regard to the module's output to dY, (B, T, O); `None` as
            above.
        common (`bool`): whether it is one call for all examples, as a lookup of the positions (1, T). What comes out,
            (1, T, ...) or (T, features), is then handed on as (B, T, ...), so that each example's gradient comes back.
    """

    inputs: Side | None
    output_gradients: Callable[[Tensor], Side | None]
    common: bool = False


class LayerKind(ABC):
    """Parameters of modules whose gradient is G = X^T dY (I x O), summed over the tokens of an example.

    A kind implements every abstract method and overrides no other.

    Attributes:
        name (`str`): what an index's table of modules calls it.
        linear (`bool`): whether `target_modules="all-linear"` takes such parameters; else "all" does, or their names.
        forward_of (`type`, `tuple[type, ...]` or `None`): the class, or the classes, whose `forward` computes
            y = x W + b. A module of a subclass with another one may do something else with its weight, which is then
            followed instead of the module's calls ([`~lorif_hf.recording.following.ParameterFollower`]). `None`:
            calls are all there is; `()`: they tell nothing.

    Example: (`docs/extending.md` writes all of one)

    ```python
    >>> @lorif_hf.layers.register
    ... class Mine(LayerKind):
    ...     name = "dense-kernel"
    ```
    """

    name: ClassVar[str]
    linear: ClassVar[bool]
    forward_of: ClassVar[type[nn.Module] | tuple[type[nn.Module], ...] | None] = None

    @abstractmethod
    def accepts(self, module: nn.Module, parameter: str) -> bool:
        """Whether the parameter of that name, which the module holds itself, is of this kind."""

    @abstractmethod
    def shape(self, module: nn.Module, parameter: str) -> MatrixShape:
        """I and O."""

    @abstractmethod
    def as_matrix(self, weight: Tensor) -> Tensor:
        """The parameter, or its gradient, as the module keeps it, in the orientation of G: (I, O)."""

    @abstractmethod
    def tokens(
        self, module: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: BatchShape
    ) -> Tokens:
        """X of a call with these arguments, and how dY comes of the gradient with regard to what it returned."""


def is_plain(kind: LayerKind, module: nn.Module) -> bool:
    """Whether a module computes what its kind says, no more and no less."""
    classes = kind.forward_of if isinstance(kind.forward_of, tuple) else (kind.forward_of,)
    return any(of is None or type(module).forward is of.forward for of in classes)


def kind_of(module: nn.Module, parameter: str = "weight") -> LayerKind | None:
    """The kind that accepts a parameter of a module, the last registered first; `None`: it cannot be tracked.

    A parameter that is computed (`torch.nn.utils.parametrizations`, the old `weight_norm`) is none of the module's
    own, and reading it may change what it is computed from.
    """
    if module._parameters.get(parameter) is None:
        return None
    return next((kind for kind in LAYER_KINDS if kind.accepts(module, parameter)), None)


def go_together(kind: LayerKind | None, other: LayerKind | None) -> bool:
    """Whether uses of a weight by modules of two kinds are recorded together: of one kind they are, and so are all
    products with the weight and lookups in it, which are followed."""
    if kind is None or other is None:
        return False
    return kind is other or bool(kind.forward_of and other.forward_of)


def kinds_of(module: nn.Module) -> dict[str, LayerKind]:
    """The kind of each parameter that a module holds itself, where it is of one."""
    kinds = {parameter: kind_of(module, parameter) for parameter in module._parameters}
    return {parameter: kind for parameter, kind in kinds.items() if kind is not None}


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer of a single input was called with, by position or by name."""
    argument: Tensor = args[0] if args else next(iter(kwargs.values()))
    return argument

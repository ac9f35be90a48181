"""What a pass over tokens may add up of a layer."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

from torch import Tensor


S = TypeVar("S", bound="Statistic")


class Statistic(ABC):
    """A sum over the tokens, or the examples, of one layer in the projected space. Starts at zero.

    Attributes:
        takes_wide (`bool`): whether it takes the inputs as they are instead, a `Side` (n, T, I), call by call.
    """

    takes_wide: ClassVar[bool] = False

    @abstractmethod
    def of(self: S, inputs: Any, output_gradients: Tensor) -> S:
        """That of a batch alone, from its tokens (n, T, d1) and (n, T, d2), those of all calls of the layer."""

    @abstractmethod
    def add(self: S, other: S) -> None:
        """Take in another batch."""


def added(total: Tensor, share: Tensor) -> Tensor:
    """A sum, changed in place, with a batch's share of it, on the device where the share is: a sum that starts at zero
    on the CPU is kept where the layer computes."""
    return total.to(share.device).add_(share)

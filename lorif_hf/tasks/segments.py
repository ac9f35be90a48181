"""Examples that share a sequence: which tokens of a packed or flattened batch are whose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cross_entropy import IGNORED


SEGMENTS = "segments"
"""The entry of a batch that holds its [`Segments`], where its examples are no sequences of their own."""

_ALIKE = 2  # examples are cut out together whose lengths differ by this factor at most: what they are padded with


@dataclass(frozen=True)
class Segments:
    """Which part of which sequence each example of a batch is.

    Args:
        shape (`tuple[int, int]`): (S, T) of the batch's `input_ids`.
        places (`Sequence[tuple[int, int, int]]`): of each example its sequence, its first token there, and the one
            after its last. No two overlap; tokens of none are padding, or of documents that are not recorded.
    """

    shape: tuple[int, int]
    places: Sequence[tuple[int, int, int]]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def lengths(self) -> Tensor:
        """int64 (B,), tokens of each example."""
        return torch.tensor([stop - start for _, start, stop in self.places])

    def owners(self) -> Tensor:
        """int64 (S, T): the example that each token belongs to; B where it is of none."""
        owners = torch.full(self.shape, len(self))
        for number, (sequence, start, stop) in enumerate(self.places):
            owners[sequence, start:stop] = number
        return owners

    def sums(self, values: Tensor) -> Tensor:
        """(B,) sums over the examples of what stands where the next token is predicted, (S, T).

        A token that is predicted from another example's last one counts for the example that it is of.
        """
        before = [(sequence, max(0, start - 1), max(0, stop - 1)) for sequence, start, stop in self.places]
        parts = Segments(self.shape, before).cuts(values.device)
        sums = torch.cat([cut(values.unsqueeze(-1), index).sum(dim=(1, 2)) for _, index in parts])
        return sums[in_place(parts).to(values.device)]

    def cuts(self, device: torch.device) -> list[tuple[list[int], Tensor]]:
        """Where the tokens of each example are, for [`cut`].

        Returns:
            `list`: numbers of examples of like length, n of them, and int64 (n, L): each of their tokens as a place
            among all S T, S T where there is none.
        """
        lengths = self.lengths.tolist()
        order = sorted(range(len(self)), key=lambda number: -lengths[number])
        groups: list[list[int]] = []
        for number in order:
            if not groups or lengths[number] * _ALIKE < lengths[groups[-1][0]]:
                groups.append([])
            groups[-1].append(number)
        return [
            (sorted(group), self._index([self.places[number] for number in sorted(group)]).to(device))
            for group in groups
        ]

    def _index(self, places: Sequence[tuple[int, int, int]]) -> Tensor:
        steps = torch.arange(max(stop - start for _, start, stop in places))
        firsts = torch.tensor([sequence * self.shape[1] + start for sequence, start, _ in places]).unsqueeze(1)
        lengths = torch.tensor([stop - start for _, start, stop in places]).unsqueeze(1)
        return torch.where(steps < lengths, firsts + steps, self.shape[0] * self.shape[1])

    def masked(self, labels: Tensor) -> Tensor:
        """Labels (S, T), -100 where a token is of no example."""
        return labels.masked_fill(self.owners().to(labels.device) == len(self), IGNORED)


def in_place(cuts: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """int64 (B,): where each example stands among those of the [`~Segments.cuts`], one after another."""
    return torch.tensor([number for numbers, _ in cuts for number in numbers]).argsort()


def cut(tensor: Tensor, index: Tensor, copies: int = 1) -> Tensor:
    """The tokens of some examples, (n, L, features), of (S, T, features): zeros beyond the end of each.

    Args:
        tensor (`Tensor`): of all tokens, or of `copies` of each, one after another: (S, T copies, features).
        index (`Tensor`): of [`~Segments.cuts`].
        copies (`int`, *optional*, defaults to 1): as of a token that goes to several experts.
    """
    size = tensor.shape[-1]
    flat = F.pad(tensor.reshape(-1, copies * size), (0, 0, 0, 1))
    return flat[index.to(flat.device)].reshape(len(index), -1, size)


def sums_by_example(values: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """(B,) sums over each example's tokens of values (S, T), those of the next token where each is predicted."""
    segments = batch.get(SEGMENTS)
    return values.sum(dim=1) if segments is None else segments.sums(values)


def without_segments(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as a model takes it, or somebody else's loss."""
    return {key: value for key, value in batch.items() if key != SEGMENTS}

"""How much of what was trained an index covers, and what of it is left out, and why."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Untracked:
    """A trained parameter that is not tracked.

    Args:
        name (`str`): of the parameter.
        size (`int`): how many numbers it holds.
        reason (`str`): why it is not tracked.
    """

    name: str
    size: int
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Which of the trained parameters an index tracks.

    Args:
        tracked (`int`): numbers in the tracked weights.
        trained (`int`): numbers in all trained parameters.
        untracked (`list[Untracked]`): every trained parameter that is not tracked, in the model's order.
    """

    tracked: int = 0
    trained: int = 0
    untracked: list[Untracked] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of the trained parameters that is tracked, 0 to 1."""
        return self.tracked / self.trained if self.trained else 0.0

    @property
    def reasons(self) -> dict[str, int]:
        """How many numbers are left out for each reason, the most first."""
        sizes: Counter[str] = Counter()
        for parameter in self.untracked:
            sizes[parameter.reason] += parameter.size
        return dict(sizes.most_common())

    def __str__(self) -> str:
        """The share and the largest parts that are left out, in a line."""
        parts = [f"{size / max(1, self.trained):.1%} {reason}" for reason, size in list(self.reasons.items())[:3]]
        left_out = f"; left out: {'; '.join(parts)}" if parts else ""
        return f"{self.share:.1%} of the trained parameters are tracked{left_out}"

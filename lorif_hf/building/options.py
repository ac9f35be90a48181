"""How a build runs: which rows go through the model together, and how much memory a fit may take."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..checks import whole_bytes, whole_number
from ..errors import ConfigError


@dataclass(frozen=True)
class BuildOptions:
    """How a build runs. Changes the index by rounding at most.

    Args:
        batch_size (`int`): rows that go through the model at once, where `max_tokens` is not given. Packed rows count
            as one, however many documents they hold.
        max_tokens (`int`, *optional*): tokens, padding included: rows of like length go together, as many as fit. A
            row that is longer goes alone.
        auto (`bool`): halve what did not fit into memory and go on.
        max_memory (`int` or `str`, *optional*): bytes that fitting one layer's curvature may take.
        check (`bool`): see that the first rows are recorded as they were trained, before the pass.
        overwrite (`bool`): replace another index, or an unfinished build of one.
    """

    batch_size: int
    max_tokens: int | None = None
    auto: bool = False
    max_memory: int | str | None = None
    check: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        whole_number(self.batch_size, "batch_size", 1, ConfigError)
        if self.max_tokens is not None:
            whole_number(self.max_tokens, "max_tokens_per_batch", 1, ConfigError)
        whole_bytes(self.max_memory, "max_memory", ConfigError)

    @property
    def memory(self) -> int | None:
        """`max_memory` in bytes."""
        return whole_bytes(self.max_memory, "max_memory", ConfigError)

    def groups(self, row_ids: Sequence[int], lengths: Callable[[Sequence[int]], Sequence[int]]) -> Iterator[list[int]]:
        """Row numbers in groups that go through the model together, each once.

        Args:
            row_ids (`Sequence[int]`): the rows.
            lengths (`Callable`): tokens of each; asked for only where tokens are counted.
        """
        if self.max_tokens is None:
            for start in range(0, len(row_ids), self.batch_size):
                yield list(row_ids[start : start + self.batch_size])
            return
        # The longest first: what does not fit into memory shows at once.
        by_length = sorted(zip(lengths(row_ids), row_ids, strict=True), key=lambda pair: (-pair[0], pair[1]))
        group: list[int] = []
        longest = 0
        for length, number in by_length:
            if group and (len(group) + 1) * longest > self.max_tokens:
                yield sorted(group)
                group = []
            longest = longest if group else max(1, length)
            group.append(number)
        yield sorted(group)

"""How many bytes a build takes, on the disk and in memory, from the shapes of its layers alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..codecs import codec_of
from ..config import InfluenceConfig
from ..curvature import Cost, curvature_of
from ..curvature.encoding import bytes_per_example, stored_entries
from ..storage.layout import ModuleEntry
from .fitting import shape_of
from .layer_groups import layer_groups


SHARDS = 3  # that are held at once: in the making, being written, and its copy on the way to the disk
_NOTED = 28  # bytes of what is noted of each row: loss, tokens, weight, self-influence
_INFLUENCE = 8  # bytes of a row's self-influence in one layer's file


@dataclass(frozen=True)
class Sizes:
    """Bytes of a build, beside those of the model, of a batch and of the texts.

    Args:
        rows (`int`): N.
        per_example (`int`): in the factor files, of each example.
        fixed (`int`): in the curvature file, however many examples there are.
        staged (`int`): in files of the build's own that are there until the curvature file is whole.
        noted (`int`): of what is noted of each row, in the build's own files and in the example tables.
        gathered (`int`): in memory, what the first pass keeps of all layers.
        group (`int`): in memory, what it keeps of the layers that must be there at once, at the least.
        widest (`str`): the widest of these.
        moment (`int`): in memory for a moment beside these, of one layer after the other.
        fit (`int`): in memory, the fit of the layer that takes the most.
        fitted (`str`): that layer.
        shards (`int`): in memory, the shards that are held at once.
    """

    rows: int
    per_example: int
    fixed: int
    staged: int
    noted: int
    gathered: int
    group: int
    widest: str
    moment: int
    fit: int
    fitted: str
    shards: int

    @property
    def factors(self) -> int:
        """In the factor files."""
        return self.rows * self.per_example

    @property
    def index(self) -> int:
        """Of the index, without texts and tokenizer."""
        return self.factors + self.fixed

    @property
    def disk(self) -> int:
        """At the peak, while the index and the build's own files are both there."""
        return self.index + self.staged + self.noted

    @property
    def finish(self) -> int:
        """Memory of the curvature file, which is written at once: its tensors, and their copy on the way."""
        return 2 * self.fixed

    @property
    def to_fit(self) -> int:
        """Memory of what is known of all layers at once: moments and whiteners, the fit of a layer, what is kept."""
        return max(self.gathered + self.moment, self.fit, self.finish)

    @property
    def memory(self) -> int:
        """Memory at the peak, where all layers are whitened at once."""
        return max(self.to_fit, self.gathered + self.shards)

    @property
    def least_memory(self) -> int:
        """The same, where layers are whitened in as many passes as there are groups of them."""
        return max(self.group + self.moment, self.fit, self.finish, self.group + self.shards)


def sizes_of(
    config: InfluenceConfig, entries: Sequence[ModuleEntry], count: int, max_memory: int | None = None
) -> Sizes:
    """What a build takes.

    Args:
        config (`InfluenceConfig`): every choice that shapes the index.
        entries (`Sequence[ModuleEntry]`): the tracked layers; at least one.
        count (`int`): N.
        max_memory (`int`, *optional*): bytes that the fit of a layer may take.
    """
    curvature, codec = curvature_of(config), codec_of(config)
    first_pass = curvature.first_pass
    first = {entry.name: first_pass.cost(entry) if first_pass else Cost() for entry in entries}
    # Layers with the same inputs go together; where gradients are divided by a norm over all layers, all do.
    units = [list(entries)] if config.joins_layers else layer_groups(entries, lambda e: first[e.name].memory, 0)
    unit = max(units, key=lambda unit: sum(first[entry.name].memory for entry in unit))
    stored = stored_entries(config, entries)
    fits = {entry.name: curvature.cost(shape_of(entry, count, codec), max_memory) for entry in _of_each_shape(stored)}
    names = {_shape(entry): entry.name for entry in _of_each_shape(stored)}
    fitted = max(stored, key=lambda entry: fits[names[_shape(entry)]].memory)
    fit_bytes = sum(fits[names[shape]].stored * times for shape, times in Counter(map(_shape, stored)).items())
    first_bytes = sum(cost.stored for cost in first.values())
    per_example = bytes_per_example(config, entries)
    sizes = Sizes(
        rows=count,
        per_example=per_example,
        fixed=first_bytes + fit_bytes,
        staged=first_bytes + fit_bytes + (_INFLUENCE * count * len(stored) if fit_bytes else 0),
        noted=2 * _NOTED * count,
        gathered=sum(cost.memory for cost in first.values()),
        group=sum(first[entry.name].memory for entry in unit),
        widest=max(unit, key=lambda entry: first[entry.name].memory).name,
        moment=max(cost.moment_memory for cost in first.values()),
        fit=fits[names[_shape(fitted)]].memory,
        fitted=fitted.name,
        shards=0,
    )
    return with_shards(sizes, config.shard_size)


def with_shards(sizes: Sizes, rows: int) -> Sizes:
    """The same with shards of so many rows."""
    held = min(SHARDS, 1 + -(-sizes.rows // rows))
    return replace(sizes, shards=held * min(sizes.rows, rows) * sizes.per_example)


def _shape(entry: ModuleEntry) -> tuple[int, int]:
    return entry.d1, entry.d2


def _of_each_shape(entries: Sequence[ModuleEntry]) -> list[ModuleEntry]:
    """One entry of each shape: those of a shape cost the same."""
    return list({_shape(entry): entry for entry in reversed(entries)}.values())

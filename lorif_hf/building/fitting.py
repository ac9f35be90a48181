"""Fitting the curvature to what was stored: layer by layer, in one resumable file each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..algebra.gradients import StoredGradients
from ..codecs import Codec
from ..curvature import Curvature, Tensors
from ..errors import ConfigError, RecordingError
from ..progress import progress
from ..storage.files import is_intact, write_tensors
from ..storage.layout import ModuleEntry
from ..storage.shards import ShardReader


_INFLUENCE = "self_influence"  # in a layer's file, beside the curvature's own tensors


def fit_curvature(
    curvature: Curvature,
    codec: Codec,
    reader: ShardReader,
    entries: Sequence[ModuleEntry],
    first: Mapping[str, Tensors],
    count: int,
    path: Callable[[int], Path],
    max_memory: int | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Fit what is missing.

    Args:
        curvature (`Curvature`): what is fitted.
        codec (`Codec`): how the gradients are stored.
        reader (`ShardReader`): of the recorded shards.
        entries (`Sequence[ModuleEntry]`): what is stored.
        first (`Mapping[str, Tensors]`): by module, what the curvature's first pass kept.
        count (`int`): N.
        path (`Callable`): the file of entry 0, 1, ...
        max_memory (`int`, *optional*): bytes that one layer may take, its result included; by default 2 GiB, or the
            least that works where that is more.

    Returns:
        `tuple[dict[str, Tensor], Tensor | None]`: the curvature's tensors under the names of the index, and each
        example's self-influence over all entries, float64 (N,); `None`: nothing is fitted to what is stored.

    Raises:
        [`~lorif_hf.errors.RecordingError`]: gradients whose squares are beyond float32.
    """
    tensors: dict[str, Tensor] = {}
    influence = None
    with progress(len(entries), "Fitting curvature", "modules") as bar:
        for number, entry in enumerate(entries):
            if not is_intact(path(number)):
                try:
                    gradients = stored_gradients(reader, entry, count, codec)
                    fitted = curvature.fit(gradients, first.get(entry.name, {}), max_memory)
                except ValueError as error:
                    raise RecordingError(
                        f"The curvature of module '{entry.name}' cannot be fitted: {error}. Leave it out with "
                        "exclude_modules."
                    ) from None
                if fitted is None:
                    return {}, None
                write_tensors(path(number), {**fitted.tensors, _INFLUENCE: fitted.self_influence})
            kept = load_file(path(number))
            of_entry = kept.pop(_INFLUENCE).double()
            influence = of_entry if influence is None else influence + of_entry
            tensors |= {f"{entry.name}.{name}": tensor for name, tensor in kept.items()}
            bar.update()
    return tensors, influence


def check_memory(
    curvature: Curvature, codec: Codec, entries: Sequence[ModuleEntry], count: int, max_memory: int | None
) -> None:
    """See that the fit of every layer has the memory that it needs. Asks before anything is recorded.

    Raises:
        [`~lorif_hf.errors.ConfigError`]: names the layer and the least that works.
    """
    for entry in entries if max_memory is not None else ():
        least = curvature.cost(shape_of(entry, count, codec), max_memory).memory
        if max_memory is not None and least > max_memory:
            raise ConfigError(
                f"max_memory={max_memory} is too small for the curvature of module '{entry.name}', {entry.d1} x "
                f"{entry.d2} of {count} examples: the least that works is {least} bytes. Allow as much, or set a "
                "lower curvature_rank or a higher projection_factor."
            )


def shape_of(entry: ModuleEntry, count: int, codec: Codec) -> StoredGradients:
    """The shape of what will be stored of a layer; there is nothing to be read."""
    return StoredGradients(lambda rows: iter(()), count, entry.d1, entry.d2, codec.pairs)


def stored_gradients(reader: ShardReader, entry: ModuleEntry, count: int, codec: Codec) -> StoredGradients:
    """The recorded gradients of one entry, read a range of rows at a time."""

    def blocks(rows: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        for shard in reader.shards:
            for start in range(0, shard.rows, rows):
                chosen = torch.arange(start, min(start + rows, shard.rows))
                yield codec.factors(reader.load(shard, [entry], chosen)[entry.name], entry.d1, entry.d2)

    return StoredGradients(blocks, count, entry.d1, entry.d2, codec.pairs)

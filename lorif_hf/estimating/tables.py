"""What `lorif-hf estimate` prints: what each preset would cost, what of it does not fit, and what would."""

from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from torch import nn

from ..building.machine import free_disk, machine_memory
from ..checks import whole_bytes
from ..config import InfluenceConfig
from ..errors import ConfigError, LorifError
from ..reports.attribution import shorten
from .costs import PRESETS, Estimate, estimates
from .sizing import sized_config
from .speed import measured_speed


TOO_MUCH = "!"  # behind what does not fit


@dataclass(frozen=True)
class Machine:
    """What an index is built on.

    Args:
        speed (`float`): sustained floating-point operations a second.
        memory, disk (`int` or `None`): bytes; `None`: not known, so that everything fits.
    """

    speed: float
    memory: int | None
    disk: int | None


def machine_of(flops: float | None, memory: str | None, disk: str | None) -> Machine:
    """What the user says of a machine, and else this one.

    Raises:
        [`~lorif_hf.errors.ConfigError`]: it is no speed or size.
    """
    if flops is not None and not 0 < flops < float("inf"):
        raise ConfigError(f"flops must be operations a second, like 1e14, got {flops!r}.")
    return Machine(
        measured_speed() if flops is None else flops,
        machine_memory() if memory is None else whole_bytes(memory, "memory", ConfigError),
        free_disk(Path()) if disk is None else whole_bytes(disk, "disk", ConfigError),
    )


def estimate_table(
    model: nn.Module, name: str, num_examples: int, length: int, machine: Machine, batch_size: int = 8
) -> tuple[Table, list[str]]:
    """The table, and what is to be said below it.

    Args:
        model (`nn.Module`): may be on the meta device.
        name (`str`): what to call it.
        num_examples, length, batch_size (`int`): N, tokens per example, examples that go through the model at once.
        machine (`Machine`): what it would be built on.
    """
    configs = {preset: make() for preset, make in PRESETS.items()}
    costs = estimates(model, num_examples, length, configs, machine.speed, batch_size)
    title = f"{shorten(name, 100)}: {num_examples:,} examples of {length:,} tokens"
    table = Table(title=Text(title))
    table.add_column("preset")
    for column in ("bytes per example", "fixed part", "index", "memory to fit", "memory in all"):
        table.add_column(column, justify="right")
    for column in ("first pass", "roots", "recording", "fit"):
        table.add_column(column, justify="right")
    for preset, cost in costs.items():
        if cost.sizes is None:
            table.add_row(preset, Text(shorten(str(cost.problem), 200)))
            continue
        seconds = cost.seconds
        table.add_row(
            preset,
            f"{cost.bytes_per_example:,}",
            decimal(cost.fixed_bytes),
            _marked(cost.sizes.disk, machine.disk, cost.index_bytes),
            decimal(cost.fit_memory),
            _marked(cost.memory, machine.memory),
            *map(duration, (seconds.first_pass, seconds.roots, seconds.recording, seconds.fit)),
        )
    return table, _notes(model, costs, num_examples, machine, batch_size)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 1 or seconds == 0 else "<1 s"


def _marked(needed: int, there: int | None, shown: int | None = None) -> Text:
    """A number of bytes, marked where it is more than there is."""
    size = decimal(needed if shown is None else shown)
    return Text(size) if there is None or needed <= there else Text(f"{size} {TOO_MUCH}", style="bold red")


def _notes(
    model: nn.Module, costs: dict[str, Estimate], num_examples: int, machine: Machine, batch_size: int
) -> list[str]:
    known = [cost for cost in costs.values() if cost.sizes is not None]
    if not known:
        return []
    first = known[0]
    dtype = next((str(p.dtype)[6:] for p in model.parameters() if p.is_floating_point()), "no numbers")
    notes = [
        str(first.coverage),
        f"Memory in all: the model in {dtype} ({decimal(first.model_memory)}), a batch of {batch_size} (about "
        f"{decimal(first.batch_memory)}), and what the build holds beside them. Times are for {machine.speed:.2g} "
        "operations a second.",
    ]
    if first.unseen is not None:
        notes.append(
            f"Its forward pass cannot be seen without weights ({shorten(first.unseen, 200)}): layers count as if none "
            "shared its inputs, and the pass by its parameters."
        )
    too_large = [
        name
        for name, cost in costs.items()
        if cost.sizes is not None
        and ((machine.memory or cost.memory) < cost.memory or (machine.disk or cost.sizes.disk) < cost.sizes.disk)
    ]
    if too_large:
        has = " and ".join(
            f"{decimal(size)} of {what}" for what, size in (("memory", machine.memory), ("disk", machine.disk)) if size
        )
        notes.append(f"{TOO_MUCH} More than there is ({has}): {', '.join(too_large)}.")
    if "default" in too_large:
        notes.append(_way_out(model, num_examples, machine, costs["default"], batch_size))
    return notes


def _way_out(model: nn.Module, num_examples: int, machine: Machine, default: Estimate, batch_size: int) -> str:
    """What would fit where the default does not: smaller batches, or a smaller config."""
    left, each, batch = machine.memory, default.batch_memory // batch_size, batch_size
    assert default.sizes is not None
    if left is not None:
        left -= default.model_memory
        if left <= each:
            return (
                f"The model alone takes {decimal(default.model_memory)}, and an example {decimal(each)} on its way "
                "through it: take a machine with more memory, a smaller dtype, or shorter examples."
            )
        rows = (left - default.sizes.memory) // max(1, each)
        if 0 < rows < batch_size and default.sizes.disk <= (machine.disk or default.sizes.disk):
            return f"What fits: the default, with batch_size={rows}."
        batch = min(batch_size, max(1, left // 2 // max(1, each)))  # half of what is left, at the most
        left -= each * batch
    room = None if machine.disk is None else machine.disk - (default.sizes.disk - default.sizes.index)
    try:
        config = sized_config(model, num_examples, None if room is None else max(1, room), left, {})
    except LorifError as error:
        return f"Nothing fits. {error}"
    plain = InfluenceConfig().to_dict()
    changed = ", ".join(f"{name}={value!r}" for name, value in config.to_dict().items() if value != plain[name])
    smaller = "" if batch == batch_size else f", with batch_size={batch}"
    return f"What fits, with the best quality that is expected: InfluenceConfig({changed}){smaller}."

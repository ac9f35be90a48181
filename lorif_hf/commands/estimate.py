"""`lorif-hf estimate`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JSON, TOKEN
from .printing import print_json, print_line, print_table


if TYPE_CHECKING:
    from ..estimating.costs import Estimate
    from ..estimating.tables import Machine


def estimate(
    model: Annotated[str, typer.Argument(help="A folder or Hub id of a model or adapter; only its config is read.")],
    num_examples: Annotated[int, typer.Option(help="N, rows of the training set.", min=1)] = 10_000,
    length: Annotated[int, typer.Option(help="Tokens per example.", min=1)] = 512,
    batch_size: Annotated[int, typer.Option(help="Examples that go through the model at once.", min=1)] = 8,
    flops: Annotated[
        float | None, typer.Option(help="Sustained operations a second, like 1e14; by default, this machine's.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help='Like "80GB"; by default, this machine\'s.')] = None,
    disk: Annotated[str | None, typer.Option(help='Like "1TB"; by default, what is free here.')] = None,
    token: TOKEN = None,
    as_json: JSON = False,
) -> None:
    """Say what an index of a model would cost, for each preset, without loading its weights."""
    from ..estimating.costs import PRESETS, estimates
    from ..estimating.empty_models import empty_model
    from ..estimating.tables import estimate_table, machine_of

    machine = machine_of(flops, memory, disk)
    laid_out = empty_model(model, token)
    if not as_json:
        table, notes = estimate_table(laid_out, model, num_examples, length, machine, batch_size)
        print_table(table)
        for note in notes:
            print_line(note)
        return
    configs = {preset: make() for preset, make in PRESETS.items()}
    costs = estimates(laid_out, num_examples, length, configs, machine.speed, batch_size)
    print_json(
        {
            "model": model,
            "num_examples": num_examples,
            "length": length,
            "batch_size": batch_size,
            "machine": {"flops": machine.speed, "memory": machine.memory, "disk": machine.disk},
            "presets": {preset: _cost(cost, machine) for preset, cost in costs.items()},
        }
    )


def _cost(cost: "Estimate", machine: "Machine") -> dict[str, Any]:
    """What a preset costs, in bytes and seconds; all but the problem is null where it cannot be had."""
    sizes, seconds = cost.sizes, cost.seconds
    if sizes is None:
        names = ("fits", "bytes_per_example", "fixed_bytes", "index_bytes", "disk", "fit_memory", "memory", "seconds")
        return {**dict.fromkeys(names), "problem": cost.problem}
    fits = cost.memory <= (machine.memory or cost.memory) and sizes.disk <= (machine.disk or sizes.disk)
    return {
        "fits": fits,
        "bytes_per_example": cost.bytes_per_example,
        "fixed_bytes": cost.fixed_bytes,
        "index_bytes": cost.index_bytes,
        "disk": sizes.disk,
        "fit_memory": cost.fit_memory,
        "memory": cost.memory,
        "seconds": {
            "first_pass": seconds.first_pass,
            "roots": seconds.roots,
            "recording": seconds.recording,
            "fit": seconds.fit,
        },
        "problem": None,
    }

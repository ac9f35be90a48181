"""Whether a GPU gives what the CPU gives, and what recording and querying cost there. To run whenever one is at hand.

    python -m benchmarks.gpu --install              # dattri-llm's and bergson's environments; once, it takes minutes
    python -m benchmarks.gpu                        # at most 8 minutes; status 1 where a check or a stage fails
    python -m benchmarks.gpu --device cpu --tiny    # the same stages, tiny, where there is no GPU

Stages, each in a process of its own, so that none takes another with it, and the peak memory is its own:

- `correctness`: a small model is indexed and queried on the CPU and on the device, there in other batches.
- `gpt2`: GPT-2 124M's shape at 512 tokens, recorded beside plain forward and backward passes; queries on its index.
- `llama`: a 1B Llama's shape in bfloat16 with LoRA adapters of rank 16, the same.
- `others`: dattri-llm and bergson beside ours on LoRA adapters, where they are installed or can be.

Random weights from configs: nothing is downloaded. What is known is in the JSON file at any moment, with the card's
name; a stage that fails or runs out of its time is told there, and the next one runs. TF32 is switched off, as it is
in torch unless it is asked for: with it no product is good to 1e-3.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from huggingface_hub.utils import disable_progress_bars

from .end_to_end.environments import InstallError, python_of
from .gpu_others import SYSTEMS, others
from .gpu_stages import Rows, Setting, correctness, gpt2, llama
from .machine import load, machine
from .quality import RESULTS


STAGES = {"correctness": correctness, "gpt2": gpt2, "llama": llama, "others": others}
SHARES = {"correctness": 0.25, "gpt2": 0.4, "llama": 0.5, "others": 1.0}  # of the time that is left when it starts
PARTS = ("correctness", "recording", "queries", "others")
ROW = "row of the report: "  # how a line of a stage's output begins


class Report(Rows):
    """What is known so far: printed, and in the JSON file at any moment."""

    def __init__(self, path: Path, **about: Any):
        self.path = path
        self.contents: dict[str, Any] = {**about, "stages": {}, **{part: [] for part in PARTS}}
        self.write()

    def add(self, part: str, row: dict[str, Any]) -> None:
        self.contents[part].append(row)
        self.write()
        shown = (
            f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        )
        print(f"{part}: {', '.join(shown)}", flush=True)

    def write(self, **more: Any) -> None:
        self.contents |= more
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.contents, indent=2) + "\n")


class PrintedRows(Rows):
    """Rows on their way from a stage's process."""

    def add(self, part: str, row: dict[str, Any]) -> None:
        print(ROW + json.dumps([part, row]), flush=True)


def run_stage(name: str, setting: Setting, report: Report) -> str:
    """Run a stage in a process of its own, and take in its rows as they come. Returns how it ended."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--stage", name, "--device", setting.device.type]
    command += [
        "--seconds",
        str(setting.seconds),
        "--venvs",
        str(setting.venvs),
        *(["--tiny"] if setting.tiny else []),
    ]
    root = Path(__file__).parents[1]
    with tempfile.TemporaryFile("w+") as errors:
        # A session of its own: what it started ends with it.
        process = subprocess.Popen(
            command, cwd=root, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(setting.seconds, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(ROW):
                    report.add(*json.loads(line.removeprefix(ROW)))
            status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        errors.seek(0)
        last = " ".join(deque((line.strip() for line in errors if line.strip()), maxlen=3))
    if late.is_set():
        return f"out of time after {setting.seconds:.0f} s"
    return "done" if status == 0 else f"failed with status {status}: {last[-600:]}"


def child(name: str, setting: Setting) -> None:
    """A stage, in its own process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    disable_progress_bars("lorif_hf")
    STAGES[name](PrintedRows(), setting)


def install(venvs: Path) -> None:
    """The environments of the other systems; what does not install is told."""
    for system in SYSTEMS:
        try:
            print(f"{system}: {python_of(system, venvs)}")
        except InstallError as error:
            print(f"{system} does not install: {error}")


def main(
    device: Annotated[str, typer.Option(help="cuda, cpu, or auto: a GPU, and nothing where there is none.")] = "auto",
    minutes: Annotated[float, typer.Option(help="After which it stops, with what it has.")] = 8.0,
    tiny: Annotated[bool, typer.Option(help="Tiny models: whether it runs, not how fast.")] = False,
    only: Annotated[str, typer.Option(help="Only the stage of this name.")] = "",
    results: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "gpu.json",
    venvs: Annotated[Path, typer.Option(help="Where the environments are kept.")] = Path("benchmark-output/venvs"),
    install_others: Annotated[bool, typer.Option("--install", help="Install the other systems, and no more.")] = False,
    stage: Annotated[str, typer.Option(hidden=True)] = "",
    seconds: Annotated[float, typer.Option(hidden=True)] = 0.0,
) -> None:
    """Compare a GPU with the CPU, and time it."""
    if device not in ("auto", "cuda", "cpu"):
        raise typer.BadParameter(f"the devices are auto, cuda and cpu, got {device!r}")
    if only not in ("", *STAGES):
        raise typer.BadParameter(f"the stages are {', '.join(STAGES)}, got {only!r}")
    if install_others:
        install(venvs.resolve())
        return
    if device != "cpu" and not torch.cuda.is_available():
        print("No GPU is here, so nothing was run. --device cpu runs the same stages on the CPU.")
        raise typer.Exit(2)
    place = torch.device("cpu" if device == "cpu" else "cuda")
    if stage:
        child(stage, Setting(place, tiny, seconds, venvs))
        return
    card = torch.cuda.get_device_name() if place.type == "cuda" else None
    report = Report(results, card=card, machine=machine(), device=place.type, tiny=tiny, tf32=False)
    print(f"{card or 'No GPU'}; {machine()}; TF32 is off", flush=True)
    start = time.monotonic()
    for name in [only] if only else STAGES:
        left = 60 * minutes - (time.monotonic() - start) - 1
        began = time.monotonic()
        share = 1.0 if only else SHARES[name]
        setting = Setting(place, tiny, share * left, venvs.resolve())
        ended = run_stage(name, setting, report) if left > 0 else "not begun: the time is over"
        report.contents["stages"][name] = {"ended": ended, "seconds": time.monotonic() - began}
        report.write(seconds=time.monotonic() - start, load=load())
        print(f"{name}: {ended}", flush=True)
    checks = [row["check"] == "pass" for row in report.contents["correctness"]]
    print(f"{sum(checks)} of {len(checks)} checks passed; {report.contents['seconds']:.0f} s in all: {results}")
    ended_well = all(row["ended"] == "done" for row in report.contents["stages"].values())
    failed = any("error" in row for part in ("recording", "queries") for row in report.contents[part])
    if failed or not (all(checks) and ended_well):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

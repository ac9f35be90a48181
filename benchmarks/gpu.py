"""Whether a GPU gives what the CPU gives, and what recording and querying cost there. To run whenever one is at hand.

    python -m benchmarks.gpu                        # under 8 minutes; status 1 where a check fails or time is short
    python -m benchmarks.gpu --device cpu --tiny    # the same steps in seconds, where there is no GPU (status 2)

First a small model is indexed and queried on the CPU and on the device, there in other batches: also the CPU against
itself then rounds otherwise. Scores must agree to 1e-3 of the largest. At one bit a number a sign at a tie falls
either way by rounding, and with it what follows: there the scores of two builds must correlate, and those of one
index, queried with the model on either side, agree. TF32 is switched off, as it is in torch unless it is asked for:
with it no product is good to 1e-3.

Then GPT-2 124M is recorded at 512 tokens, beside plain forward and backward passes that compute weight gradients, as
every training step does. Both collate the same rows; seconds are those of a batch. Last, queries of 64 tokens on the
index of these few rows: their time is that of the query's gradient and its preconditioning. benchmarks.query has that
of looking through large indices, which is the CPU's work on any machine. The JSON file has every part as soon as it
is there.
"""

import copy
import itertools
import json
import signal
import statistics
import tempfile
import time
import traceback
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from huggingface_hub.utils import disable_progress_bars
from torch import Tensor

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import ModelMismatchError

from .machine import machine, peak_memory
from .quality import RESULTS
from .recording import CONFIGS, make


TOLERANCE = 1e-3  # of the largest score
CORRELATION = 0.99  # of two builds' scores at one bit, for each query; on a CPU, other batches alone leave 0.9998
REPEATS, K, COMPARED_QUERIES, TIMED_QUERIES = 5, 10, 16, (1, 64)
QUERY_TOKENS = 64  # a prompt and its answer
QUERY_SHARE = 0.08  # of all the time, for the repeats of one query: four are timed

Case = namedtuple("Case", "width layers vocabulary length batch batches")  # what `recording.make` takes
COMPARED, TIMED = Case(256, 4, 2048, 64, 8, 8), Case(768, 12, 50257, 512, 8, 8)
TINY_COMPARED, TINY_TIMED = Case(32, 2, 64, 12, 4, 3), Case(32, 2, 64, 16, 2, 8)


class OutOfTimeError(BaseException):
    """The minutes given are over. No failure of what was running, which an `except Exception` could take it for."""


class Report:
    """What is known so far: printed, and in the JSON file at any moment."""

    def __init__(self, path: Path, **about: Any):
        self.path, self.contents = path, {**about, "correctness": [], "recording": [], "queries": []}

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


def check(report: Report, config: str, what: str, passed: bool, **figures: Any) -> None:
    report.add("correctness", {"check": "pass" if passed else "FAIL", "config": config, "what": what, **figures})


def compare(report: Report, config: str, what: str, got: Tensor, expected: Tensor, coarse: bool = False) -> None:
    """Check scores (Q, n) against the expected ones; of `coarse` ones the correlation alone. NaN passes nothing."""
    got, expected = got.double().cpu(), expected.double().cpu()
    difference = float((got - expected).abs().max() / expected.abs().max())
    correlation = min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(got, expected, strict=True))
    passed = correlation >= CORRELATION if coarse else difference <= TOLERANCE
    limit = f"correlation >= {CORRELATION}" if coarse else f"difference <= {TOLERANCE:g}"
    check(report, config, what, passed, difference=difference, correlation=correlation, limit=limit)


@contextmanager
def to_the_end(report: Report, config: str, what: str) -> Iterator[None]:
    """Note what raises as a check that failed, and let the others have their turn: a GPU is seldom at hand."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        check(report, config, what, False, error=f"{type(error).__name__}: {error}")


def random_rows(case: Case, count: int, shortest: int, longest: int, seed: int) -> Dataset:
    """Rows of random tokens; those of unlike lengths are padded in their batches."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    rows = [torch.randint(1, case.vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": rows})


def correctness(report: Report, case: Case, device: torch.device) -> None:
    """Build and query on both sides, and compare."""
    model = make(*case)[0].cpu()
    twin = copy.deepcopy(model).to(device)
    dataset = random_rows(case, case.batch * case.batches, case.length // 4, case.length, seed=1)
    queries = random_rows(case, COMPARED_QUERIES, case.length // 4, case.length, seed=2)
    configs = {**CONFIGS, "grad_dot()": lambda: InfluenceConfig.grad_dot(projection_factor=1, dtype="float32")}
    batch, other = case.batch, case.batch - 1
    for name, config in configs.items():
        with to_the_end(report, name, "builds and queries"), tempfile.TemporaryDirectory() as folder:
            here = InfluenceIndex.build(model, dataset, Path(folder) / "cpu", config=config(), batch_size=batch)
            there = InfluenceIndex.build(twin, dataset, Path(folder) / "device", config=config(), batch_size=other)
            expected = here.scores(model, queries, batch_size=batch)
            strict = recognised(report, name, here, twin, queries)
            crossed = here.scores(twin, queries, batch_size=other, strict=strict)
            compare(report, name, "one index, queried with the model on the device", crossed, expected)
            best = here.attribute(twin, queries, top_k=K, batch_size=other, strict=strict).scores
            compare(report, name, f"its best {K}", best, expected.topk(K).values)
            built = there.scores(twin, queries, batch_size=other)
            compare(report, name, "built and queried on the device", built, expected, coarse=config().bits == 1)
            influence = there.self_influence().unsqueeze(0), here.self_influence().unsqueeze(0)
            compare(report, name, "self-influence, built on the device", *influence)


def recognised(report: Report, config: str, index: InfluenceIndex, model: Any, queries: Dataset) -> bool:
    """Check that an index takes a model for its own on the other side too: the weights are the same."""
    try:
        index.attribute(model, queries.select([0]), top_k=1)
        passed = True
    except ModelMismatchError:  # the figures are still wanted, without the check
        passed = False
    check(report, config, "the model is recognised on the device", passed)
    return passed


def synchronize(device: torch.device) -> None:
    """Wait for what the device was given to do; a clock that is read earlier tells when it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


@contextmanager
def noted_peak(row: dict[str, Any], name: str, device: torch.device) -> Iterator[None]:
    """Note the most memory that the device held meanwhile, in GiB (on the CPU: the process, so far)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield
    row[name] = peak_memory() / 2**30


def plain_seconds(model: Any, dataset: Dataset, batch: int, device: torch.device) -> float:
    """A batch's forward and backward pass with the gradients of all weights: the median, after a first."""

    def step(first: int) -> None:
        columns = dataset[first : first + batch]
        model(**{name: torch.tensor(column).to(device) for name, column in columns.items()}).loss.backward()
        model.zero_grad()

    model.train()
    firsts = [number * batch % len(dataset) for number in range(REPEATS + 1)]
    seconds = statistics.median([seconds_of(lambda: step(first), device) for first in firsts][1:])  # noqa: B023
    model.zero_grad(set_to_none=True)
    return seconds


def build(
    row: dict[str, Any], passes: int, model: Any, dataset: Dataset, case: Case, device: Any, **options: Any
) -> Any:
    """Build an index, and note how long a batch took in each of its passes over the rows.

    The passes are told apart by when the model is called, which is once a batch; so nothing of the build is taken to
    pieces. Each pass's first batch warms up, and its last has no successor in the same pass.
    """
    starts: list[float] = []

    def note(*_: Any) -> None:
        synchronize(device)
        starts.append(time.perf_counter())

    handle = model.register_forward_pre_hook(note)
    start = time.perf_counter()
    try:
        index = InfluenceIndex.build(model, dataset, batch_size=case.batch, check=False, **options)
        row["build_seconds"] = time.perf_counter() - start
    finally:
        handle.remove()
        if len(starts) == passes * case.batches:  # else a batch went through twice, or the passes are other ones
            *before, last = (starts[first : first + case.batches] for first in range(0, len(starts), case.batches))
            row["recording_seconds"] = _between(last)
            row["ratio_to_plain"] = row["recording_seconds"] / row["plain_seconds"]
            for moments in before:
                row["moments_seconds"] = _between(moments)
                row["inverse_roots_seconds"] = last[0] - moments[-1] - row["moments_seconds"]
    return index


def _between(starts: list[float]) -> float:
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(starts[1:]))


def timing(report: Report, case: Case, device: torch.device, most: float) -> None:
    """Recording against plain passes, and queries on what was recorded, for which `most` seconds may be repeated."""
    model, dataset = make(*case)
    model.to(device)
    length = min(QUERY_TOKENS, case.length)
    for name, config in CONFIGS.items():
        row: dict[str, Any] = {"config": name, **case._asdict()}
        passes = 1 if config().whitening == "none" else 2  # the moments come first
        with to_the_end(report, name, "is timed"), tempfile.TemporaryDirectory() as folder:
            options = {"path": Path(folder) / "index", "config": config()}
            try:
                with noted_peak(row, "plain_peak_gib", device):
                    row["plain_seconds"] = plain_seconds(model, dataset, case.batch, device)
                with noted_peak(row, "build_peak_gib", device):
                    index = build(row, passes, model, dataset, case, device, **options)
            finally:
                report.add("recording", row)
            for count in TIMED_QUERIES:
                queries = random_rows(case, count, length, length, seed=3)
                report.add("queries", {"config": name, **query_row(index, model, queries, device, most)})


def query_row(
    index: InfluenceIndex, model: Any, queries: Dataset, device: torch.device, most: float
) -> dict[str, Any]:
    """Seconds of a search for the best rows. The first, which draws and reads what later ones have, stands apart; it
    is all where it took `most` seconds."""
    row: dict[str, Any] = {"queries": len(queries), "tokens": len(queries[0]["input_ids"]), "examples": len(index)}
    times: list[float] = []
    with noted_peak(row, "peak_gib", device):
        for _ in range(REPEATS + 1):
            times.append(seconds_of(lambda: index.attribute(model, queries, top_k=K), device))
            if sum(times) > most:
                break
    later = times[1:] or times
    return {**row, "first_seconds": times[0], "seconds": statistics.median(later), "repeats": len(later)}


def stop(*_: Any) -> None:
    raise OutOfTimeError


def main(
    device: Annotated[str, typer.Option(help="cuda, cpu, or auto: a GPU, and nothing where there is none.")] = "auto",
    minutes: Annotated[float, typer.Option(help="After which it stops, with what it has.")] = 8.0,
    tiny: Annotated[bool, typer.Option(help="Tiny models: whether it runs, not how fast.")] = False,
    results: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "gpu.json",
) -> None:
    """Compare a GPU with the CPU, and time it."""
    if device not in ("auto", "cuda", "cpu"):
        raise typer.BadParameter(f"the devices are auto, cuda and cpu, got {device!r}")
    if device != "cpu" and not torch.cuda.is_available():
        print("No GPU is here, so nothing was run. --device cpu runs the same steps on the CPU.")
        raise typer.Exit(2)
    place = torch.device("cpu" if device == "cpu" else "cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    disable_progress_bars("lorif_hf")
    start = time.perf_counter()
    report = Report(results, machine=machine(), device=place.type, tiny=tiny, tf32=False)
    print(f"{machine()}; device {place.type}; TF32 is off", flush=True)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 57 * minutes)  # of 60: what was begun has to be let go of first
    try:
        correctness(report, TINY_COMPARED if tiny else COMPARED, place)
        timing(report, TINY_TIMED if tiny else TIMED, place, QUERY_SHARE * 60 * minutes)
    except OutOfTimeError:
        print(f"Out of time after {minutes:g} minutes: what was done by then is in {results}.")
        report.write(out_of_time=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    report.write(seconds=time.perf_counter() - start)
    passed = [row["check"] == "pass" for row in report.contents["correctness"]]
    print(f"{sum(passed)} of {len(passed)} checks passed; {report.contents['seconds']:.0f} s in all.")
    if "out_of_time" in report.contents or not all(passed):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

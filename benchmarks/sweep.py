"""Is what the index holds what autograd says? Every causal language model and every classifier of transformers.

    python -m benchmarks.sweep                # all: results/sweep.json and docs/models.md; four minutes on two cores
    python -m benchmarks.sweep GPT2 Mamba     # those whose names match one of these; writes nothing

Each class is made small and random (`small_models.py`). An index of a few rows is built with the defaults, and the
same rows are asked. Beside it stands the obvious: one row at a time, the model's own loss summed over its targets,
autograd's gradient of every weight that the index says it tracks, and their inner products.
"""

import json
import logging
import os
import re
import tempfile
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import TimeoutError as NoAnswer
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from torch import Tensor

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import LorifError

from .autograd import row_gradients
from .machine import machine
from .models_page import write_page
from .small_models import CLASSIFIER, END, LABELS, MISSING, PLAIN_TOKENS, classes, small_model


ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results/sweep.json", ROOT / "docs/models.md"
CONFIG = InfluenceConfig.grad_dot(projection_factor=1, dtype="float32")


class Rows(NamedTuple):
    """A set of rows: the tokens of each, and how many go together while they are recorded and while they are asked."""

    lengths: tuple[int, ...]
    recorded: int = 4
    asked: int = 4


ROWS = {
    # The second batch has as many tokens as rows: where a layer puts tokens first, that is not seen by the shape.
    "padded": Rows((6, 9, 3, 7, 4, 3, 4, 3), asked=8),
    "square": Rows((4,) * 8),  # as many tokens as rows in every batch
    "late": Rows((6, 6, 6, 6, 9, 3, 4, 7)),  # nothing is padded in the first batch, by which a build may judge
    "alone": Rows((6, 9, 3, 7, 4, 3, 4, 3), recorded=1),  # nothing is padded until it is asked
}
TOLERANCE = 1e-4  # of the largest score
LAYER_TOLERANCE = 1e-2  # of a layer's own largest score: one that is recorded as 0 may be a small part of the whole
NOISE = 1e-10  # of the largest score: a layer with less than that is rounding
SECONDS = 60  # a class
MEMORY = 8 << 30  # bytes of addresses, a process

EQUAL, REFUSED, LATE, RAW = "equal", "refused before recording", "refused late", "raw error"
DIFFERENT, NO_ANSWER, NOT_BUILT = "silently different", "no answer", "not built"
VERDICTS = (EQUAL, REFUSED, LATE, RAW, DIFFERENT, NO_ANSWER, NOT_BUILT)  # from good to bad, and what was not tried


def make_rows(task: str, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Random tokens, closed by the end of text; with a label where the task is to classify."""
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = []
    for number, length in enumerate(lengths):
        tokens = torch.randint(*PLAIN_TOKENS, (length - 1,), generator=generator).tolist()
        label = {"labels": number % LABELS} if task == CLASSIFIER else {}
        rows.append({"input_ids": [*tokens, END], **label})
    return rows


def summed_loss(model: Any, row: dict[str, Any], task: str) -> Tensor:
    """The model's own loss of a row alone, nats, summed over its targets.

    Models that ignore `num_items_in_batch`, with which the Trainer asks for a sum, give the mean: it is multiplied by
    the number of targets, the positions whose label makes a difference to the loss.
    """
    ids = torch.tensor([row["input_ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if task == CLASSIFIER:
        loss: Tensor = model(**inputs, labels=torch.tensor([row["labels"]])).loss
        return loss
    mean: Tensor = model(**inputs, labels=ids).loss
    summed: Tensor = model(**inputs, labels=ids, num_items_in_batch=torch.tensor(1)).loss
    if not torch.allclose(summed, mean):
        return summed
    without = [ids.index_fill(1, torch.tensor([position]), -100) for position in range(ids.shape[1])]
    with torch.no_grad():
        targets = sum(not torch.equal(model(**inputs, labels=labels).loss, mean) for labels in without)
    return mean * targets


def autograd_scores(
    model: Any, rows: list[dict[str, Any]], task: str, index: InfluenceIndex | None
) -> tuple[dict[str, Tensor], list[float]]:
    """Inner products of the rows' gradients by module, float64 (N, N), and the rows' losses, nats."""
    try:
        return _autograd_scores(model, rows, task, index)
    except (AssertionError, RuntimeError):  # RWKV's state and Reformer's layers have a backward pass in training alone
        model.train()  # where nothing is random: there is no dropout
        try:
            return _autograd_scores(model, rows, task, index)
        finally:
            model.eval()


def _autograd_scores(
    model: Any, rows: list[dict[str, Any]], task: str, index: InfluenceIndex | None
) -> tuple[dict[str, Tensor], list[float]]:
    gradients: list[dict[str, Tensor]] = []
    losses = []
    for row in rows:
        loss = summed_loss(model, row, task)
        losses.append(loss.item())
        if index is None:
            loss.backward()  # whether it has one at all
        else:
            gradients.append(row_gradients(index, model, loss))
    model.zero_grad()
    names = gradients[0] if gradients else {}
    stacked = {name: torch.stack([of_row[name] for of_row in gradients]) for name in names}
    return {name: matrix @ matrix.T for name, matrix in stacked.items()}, losses


def compare(model: Any, task: str, chosen: Rows, **options: Any) -> dict[str, Any]:
    """What becomes of a set of rows: a verdict, and what tells why. `options` go to the build."""
    rows = make_rows(task, chosen.lengths)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        try:
            index = InfluenceIndex.build(model, rows, path, config=CONFIG, batch_size=chosen.recorded, **options)
        except Exception as error:
            recorded = any(path.rglob("factors/*"))
            verdict = (LATE if recorded else REFUSED) if isinstance(error, LorifError) else RAW
            return {"verdict": verdict, "message": described(error), "trace": trace(error)}
        modules = [entry.name for entry in index.manifest.modules]
        try:
            ours = index.scores(model, rows, per_module=True, batch_size=chosen.asked)
        except Exception as error:
            verdict = LATE if isinstance(error, LorifError) else RAW
            return {"verdict": verdict, "message": f"scores(): {described(error)}", "trace": trace(error)}
        losses = [example["loss"] for example in index.examples(list(range(len(rows))))]
    truth, own_losses = autograd_scores(model, rows, task, index)
    total: Any = sum(truth.values())
    largest = float(total.abs().max())
    if not largest:
        return {"verdict": NOT_BUILT, "message": "no gradient reaches any tracked weight"}
    relerr = float((sum(ours.values()).double() - total).abs().max()) / largest
    scale = {name: float(truth[name].abs().max()) for name in modules}
    error_of = {
        name: float((ours[name].double() - truth[name]).abs().max()) / max(scale[name], 1e-30) for name in modules
    }
    differing = [name for name in modules if error_of[name] > LAYER_TOLERANCE and scale[name] > NOISE * largest]
    return {
        "verdict": EQUAL if relerr <= TOLERANCE and not differing else DIFFERENT,
        "objective": index.manifest.objective,
        "share": rounded(index.coverage.share),
        "modules": len(modules),
        "relerr": rounded(relerr),
        "loss_error": rounded(
            max(abs(a - b) for a, b in zip(losses, own_losses, strict=True)) / max(map(abs, own_losses))
        ),
        **({"differing": differing} if differing else {}),
    }


def rounded(number: float) -> float:
    return float(f"{number:.2g}")


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def trace(error: Exception) -> list[str]:
    return [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)][-4:]


def sweep_class(task: str, name: str, **options: Any) -> dict[str, Any]:
    """The verdict on a class: the worst of those on its sets of rows. `options` go to the build.

    "alone" tells whether any of them was recorded a row at a time.
    """
    entry: dict[str, Any] = {"task": task, "class": name}
    try:
        model = small_model(name)
        autograd_scores(model, make_rows(task, ROWS["padded"].lengths), task, None)
    except Exception as error:
        message = f"it {MISSING[name]}" if name in MISSING else described(error)
        return {**entry, "verdict": NOT_BUILT, "message": message, "trace": trace(error)}
    results = {name: compare(model, task, rows, **options) for name, rows in ROWS.items()}
    worst = max(results, key=lambda name: (VERDICTS.index(results[name]["verdict"]), results[name].get("relerr", 0)))
    alone = any(result.get("objective") == "model" for result in results.values())
    return {**entry, "rows": worst, **results[worst], "alone": alone}


class Worker:
    """A process that takes one class after another, and is replaced where it hangs or dies."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.pool: Any = None

    def start(self) -> None:
        if self.pool is None:
            self.pool = get_context("spawn").Pool(1, initializer=start_worker)
            self.pool.apply(os.getpid)  # its imports are not the class's time

    def run(self, task: str, name: str) -> dict[str, Any]:
        self.start()
        try:
            result: dict[str, Any] = self.pool.apply_async(sweep_class, (task, name)).get(self.seconds)
            return result
        except NoAnswer:
            self.stop()
            message = f"none within {self.seconds} seconds: it hangs, or its process died"
            return {"task": task, "class": name, "verdict": NO_ANSWER, "message": message}

    def stop(self) -> None:
        if self.pool is not None:
            self.pool.terminate()
            self.pool = None


def start_worker() -> None:
    """Keep a process small and quiet."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with suppress(ImportError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def run_sweep(chosen: list[tuple[str, str]], workers: int) -> list[dict[str, Any]]:
    """The verdicts on these classes, in their order."""
    console = Console()
    idle: SimpleQueue[Worker] = SimpleQueue()
    everybody = [Worker() for _ in range(workers)]
    for worker in everybody:
        idle.put(worker)

    def run(task_and_name: tuple[str, str]) -> dict[str, Any]:
        worker = idle.get()
        try:
            result = worker.run(*task_and_name)
        finally:
            idle.put(worker)
        why = result.get("relerr", result.get("message"))
        console.print(f"{result['class']}: {result['verdict']}: {why}", soft_wrap=True, markup=False, highlight=False)
        return result

    try:
        with ThreadPoolExecutor(workers) as threads:
            return list(threads.map(run, chosen))
    finally:
        for worker in everybody:
            worker.stop()


def main(names: Annotated[list[str] | None, typer.Argument()] = None, workers: int = 2) -> None:
    """Sweep over the classes whose names match one of `names` (regular expressions), or over all and write it down."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = [pair for pair in classes() if not names or any(re.search(name, pair[1]) for name in names)]
    results = run_sweep(chosen, workers)
    counts = Counter(result["verdict"] for result in results)
    Console().print(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]))
    if not names:
        lines = ",\n".join(json.dumps(result) for result in results)  # a class a line
        RESULTS.write_text(f'{{"machine": {json.dumps(machine())}, "results": [\n{lines}\n]}}\n', encoding="utf-8")
        write_page(PAGE, results)


if __name__ == "__main__":
    typer.run(main)

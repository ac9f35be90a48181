"""Is what the index holds what autograd says? Every causal language model and every classifier of transformers.

    python -m benchmarks.sweep                  # all of them; writes benchmarks/results/sweep.json and docs/models.md
    python -m benchmarks.sweep GPT2 Mamba       # those whose names hold one of these; prints only

Each class is made small and random ([`small_models`][benchmarks.small_models]). An index of a few rows is built with
the defaults, and the same rows are asked. Beside it stands the obvious: one row at a time, the model's own loss summed
over its targets, autograd's gradient of every weight that the index says it tracks, and their inner products.
"""

import json
import logging
import os
import re
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import TimeoutError, get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import LorifError

from .small_models import CLASSIFIER, END, LABELS, PLAIN_TOKENS, classes, small_model


ROOT = Path(__file__).resolve().parents[1]
CONFIG = InfluenceConfig.grad_dot(projection_factor=1, dtype="float32")
BATCH = 4
# Rows of several lengths, in batches with padding, of which the second has as many tokens as rows; then no padding and
# as many tokens as rows in every batch: a layer that puts tokens first cannot be told from one that puts rows first.
LENGTHS = {"ragged": (6, 9, 3, 7, 4, 3, 4, 3), "square": (BATCH,) * 8}
TOLERANCE = 1e-4
SECONDS = 60  # a class
MEMORY = 8 << 30  # bytes of addresses, a worker

EQUAL, REFUSED, LATE, RAW, DIFFERENT, NOT_BUILT = VERDICTS = (
    "equal",
    "refused before recording",
    "refused late",
    "raw error",
    "silently different",
    "not built",
)


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
    """The model's own loss of one row, as transformers' Trainer asks for it, summed over the row's targets.

    Models that take no `num_items_in_batch` give the mean: it is multiplied by the number of targets, which are the
    positions whose label makes a difference to the loss.
    """
    ids = torch.tensor([row["input_ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if task == CLASSIFIER:
        loss: Tensor = model(**inputs, labels=torch.tensor([row["labels"]])).loss
        return loss
    mean = model(**inputs, labels=ids).loss
    with suppress(TypeError):
        summed: Tensor = model(**inputs, labels=ids, num_items_in_batch=torch.tensor(1)).loss
        if not torch.allclose(summed, mean):
            return summed
    without = [ids.index_fill(1, torch.tensor([position]), -100) for position in range(ids.shape[1])]
    with torch.no_grad():
        targets = sum(not torch.equal(model(**inputs, labels=labels).loss, mean.detach()) for labels in without)
    return mean * targets


def autograd_scores(model: Any, rows: list[dict[str, Any]], task: str, modules: list[str]) -> dict[str, Tensor]:
    """Inner products of the rows' gradients by module, float64 (N, N): one forward and backward pass a row."""
    if not model.training:
        try:
            loss = summed_loss(model, rows[0], task)
            loss.backward()
        except Exception:
            # RWKV and xLSTM change their cache in place, Reformer asks for it: nothing in the model is random.
            model.train()
            try:
                return autograd_scores(model, rows, task, modules)
            finally:
                model.eval()
    weights = {name: model.get_parameter(f"{name}.weight") for name in modules}
    gradients: dict[str, list[Tensor]] = {name: [] for name in modules}
    for row in rows:
        model.zero_grad()
        summed_loss(model, row, task).backward()
        for name, weight in weights.items():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            gradients[name].append(gradient.double().flatten())
    model.zero_grad()
    stacked = {name: torch.stack(of_rows) for name, of_rows in gradients.items()}
    return {name: matrix @ matrix.T for name, matrix in stacked.items()}


def compare(model: Any, task: str, lengths: tuple[int, ...]) -> dict[str, Any]:
    """What becomes of one set of rows: a verdict, and what tells why."""
    rows = make_rows(task, lengths)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        try:
            index = InfluenceIndex.build(model, rows, path, config=CONFIG, batch_size=BATCH)
        except LorifError as error:
            verdict = LATE if list(path.rglob("factors/*")) else REFUSED
            return {"verdict": verdict, "message": described(error)}
        except Exception as error:
            return {"verdict": RAW, "message": described(error), "trace": trace(error)}
        modules = [entry.name for entry in index.manifest.modules]
        try:
            ours = index.scores(model, rows, per_module=True, batch_size=BATCH)
        except Exception as error:
            verdict = LATE if isinstance(error, LorifError) else RAW
            return {"verdict": verdict, "message": f"scores(): {described(error)}", "trace": trace(error)}
        losses = [example["loss"] for example in index.examples(list(range(len(rows))))]
    truth = autograd_scores(model, rows, task, modules)
    # Modules that share a weight have its gradient together.
    weights = {id(model.get_parameter(f"{name}.weight")): name for name in modules}
    total = sum(truth[name] for name in weights.values())
    largest = float(total.abs().max())
    if not largest:
        return {"verdict": NOT_BUILT, "message": "no gradient reaches any tracked weight"}
    off = {name: float((ours[name].double() - truth[name]).abs().max()) for name in modules}
    relerr = float((sum(ours.values()).double() - total).abs().max()) / largest
    scale = {name: float(truth[name].abs().max()) for name in modules}
    # Of a layer whose gradient is next to nothing, float32 leaves noise alone.
    own = {name: off[name] / scale[name] if scale[name] > 1e-10 * largest else 0.0 for name in modules}
    with torch.no_grad():
        own_losses = [float(summed_loss(model, row, task)) for row in rows]
    return {
        "verdict": EQUAL if relerr <= TOLERANCE and max(own.values()) <= 1e-2 else DIFFERENT,
        "relerr": relerr,
        "module_relerr": max(own.values()),
        "differing": {name: own[name] for name in modules if off[name] > TOLERANCE * largest or own[name] > 1e-2},
        "modules": len(modules),
        "loss_error": max(abs(a - b) for a, b in zip(losses, own_losses, strict=True)) / max(map(abs, own_losses)),
    }


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def trace(error: Exception) -> list[str]:
    return [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)][-4:]


def sweep_class(task: str, name: str) -> dict[str, Any]:
    """The verdict on one class: the worse of its two sets of rows."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    entry: dict[str, Any] = {"task": task, "class": name}
    try:
        model = small_model(name)
        autograd_scores(model, make_rows(task, LENGTHS["ragged"]), task, [])
        model.zero_grad()
    except Exception as error:
        return {**entry, "verdict": NOT_BUILT, "message": described(error), "trace": trace(error)}
    results = {rows: compare(model, task, lengths) for rows, lengths in LENGTHS.items()}
    worst = max(results, key=lambda rows: VERDICTS.index(results[rows]["verdict"]))
    return {**entry, **results[worst], "rows": worst, "results": results, "seconds": time.perf_counter() - start}


def _start_worker() -> None:
    torch.set_num_threads(1)
    with suppress(ImportError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


class Worker:
    """A process that takes one class after another, and is replaced where it hangs or dies."""

    def __init__(self) -> None:
        self.context = get_context("spawn")
        self.pool: Any = None

    def run(self, task: str, name: str) -> dict[str, Any]:
        if self.pool is None:
            self.pool = self.context.Pool(1, initializer=_start_worker)
            self.pool.apply(small_model, ("GPT2LMHeadModel",))  # the imports are not the class's time
        try:
            result: dict[str, Any] = self.pool.apply_async(sweep_class, (task, name)).get(SECONDS)
            return result
        except TimeoutError:
            self.pool.terminate()
            self.pool = None
            message = f"no answer within {SECONDS} seconds: it hung, or its process died"
            return {"task": task, "class": name, "verdict": NOT_BUILT, "message": message}


def run_sweep(chosen: list[tuple[str, str]], workers: int) -> list[dict[str, Any]]:
    """The verdicts on these classes, in their order."""
    idle = [Worker() for _ in range(workers)]

    def run(one: tuple[str, str]) -> dict[str, Any]:
        worker = idle.pop()
        try:
            result = worker.run(*one)
        finally:
            idle.append(worker)
        print(f"{result['class']}: {result['verdict']} {result.get('relerr', '')} {result.get('message', '')[:100]}")
        return result

    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(run, chosen))


def main(
    names: Annotated[list[str] | None, typer.Argument()] = None,
    workers: int = 2,
    out: Path = ROOT / "benchmarks/results/sweep.json",
) -> None:
    chosen = [one for one in classes() if not names or any(re.search(name, one[1]) for name in names)]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = run_sweep(chosen, workers)
    out.write_text(json.dumps(results, indent=1))
    print(Counter(result["verdict"] for result in results))


if __name__ == "__main__":
    typer.run(main)

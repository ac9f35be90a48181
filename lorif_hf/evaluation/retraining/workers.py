"""Several runs at once: worker processes, one device each, that die with whoever started them."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

import torch

from ...errors import EvaluationError
from .runs import RetrainJob


_IMPORTABLE = (
    "With num_processes above 1, make_trainer and objective must be functions (or methods) at the top level of a "
    "module that can be imported: no lambda, no function inside another, none of a notebook or of python -c. With "
    "num_processes=1 any function will do."
)


def run_in_processes(job: RetrainJob, runs: Sequence[int], num_processes: int, done: Callable[[], object]) -> None:
    """Do the runs in worker processes, each with its share of the cores and, in turn, one of the CUDA devices.

    Args:
        job (`RetrainJob`): what to run.
        runs (`Sequence[int]`): the numbers of the runs.
        num_processes (`int`): workers at most.
        done (`Callable`): called after each finished run.

    Raises:
        [`~lorif_hf.errors.EvaluationError`]: the job cannot be sent, a run failed, or a worker died; names the run.
            The other workers are killed; the finished runs stay.
    """
    from accelerate.utils import patch_environment

    try:
        packed = pickle.dumps(job)
    except Exception as error:  # PicklingError, AttributeError, TypeError: it depends on what cannot be pickled
        raise EvaluationError(
            f"make_trainer, the dataset or the objective cannot be sent to {num_processes} worker processes "
            f"({type(error).__name__}: {error}). {_IMPORTABLE}"
        ) from error
    threads, devices = max(1, (os.cpu_count() or 1) // num_processes), _cuda_devices()
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    theirs, lifeline = context.Pipe(duplex=False)
    idle = []
    for number in range(min(num_processes, len(runs))):
        environment = {"OMP_NUM_THREADS": str(threads)}
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        # A pool for each: it has a device of its own, and the run at which it dies is known.
        idle.append((ProcessPoolExecutor(1, context, _prepare, (theirs, threads)), environment))
    pools = [pool for pool, _ in idle]
    todo = list(reversed(runs))
    running: dict[Future[None], Any] = {}
    try:
        while todo or running:
            while todo and idle:
                run, (pool, environment) = todo.pop(), idle.pop()
                # Its process starts now, and torch reads these when it is imported: before any code of ours runs.
                with patch_environment(**environment):
                    running[pool.submit(_run, packed, run)] = run, (pool, environment)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, worker = running.pop(future)
                future.result()
                idle.append(worker)
                done()
    except BrokenProcessPool:
        raise EvaluationError(
            f"{job.name(run)}: its worker process died, perhaps out of memory. The finished runs are kept. A script "
            'that retrains with num_processes above 1 needs `if __name__ == "__main__":` around its calls; where '
            "memory is short, lower num_processes."
        ) from None
    except EvaluationError as error:
        raise EvaluationError(str(error)) from RuntimeError(f"in the worker process:\n{error.__cause__}")
    finally:  # also at Ctrl-C
        lifeline.close()
        for pool in pools:
            pool.shutdown()


def _prepare(lifeline: Connection, threads: int) -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and stops everybody
    threading.Thread(target=_die_with, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(threads)


def _die_with(lifeline: Connection) -> None:
    """End with the parent, also where that was killed: this would train on, beside the workers of the next try."""
    lifeline.poll(None)
    os._exit(1)


def _run(packed: bytes, run: int) -> None:
    """Do a run, in a worker."""
    try:
        job = pickle.loads(packed)
    except Exception as error:
        raise EvaluationError(
            f"A worker process cannot load make_trainer ({type(error).__name__}: {error}). {_IMPORTABLE}"
        ) from error
    try:
        job.run(run)
    except SystemExit:
        os._exit(1)  # the pool would raise it in the parent


def _cuda_devices() -> list[str]:
    """The devices that this process may use, as CUDA_VISIBLE_DEVICES calls them."""
    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",")][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]

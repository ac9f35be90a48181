"""Several runs at once: worker processes, one device each, that die with whoever started them."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ...errors import EvaluationError
from .runs import RetrainJob


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
    packed = _packed(job, num_processes)
    todo = list(reversed(runs))
    count = min(num_processes, len(todo))
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    devices = _cuda_devices()
    workers: list[_Worker] = []
    try:
        for number in range(count):
            with _environment(threads, devices[number % len(devices)] if devices else None):
                workers.append(_Worker(threads))
        for worker in workers:
            worker.send(packed)
            worker.give(todo.pop())
        busy = list(workers)
        while busy:
            for connection in wait([worker.connection for worker in busy]):
                worker = next(worker for worker in busy if worker.connection is connection)
                worker.take_result(job)
                done()
                if todo:
                    worker.give(todo.pop())
                else:
                    busy.remove(worker)
    finally:  # also at Ctrl-C
        for worker in workers:
            worker.stop()


class _Worker:
    """A process and the run it is at."""

    def __init__(self, threads: int):
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        # Not a daemon: those may have no children, which a DataLoader with workers needs.
        self.process = context.Process(target=_work, args=(theirs, threads))
        self.process.start()
        theirs.close()
        self.run = -1

    def give(self, run: int) -> None:
        """Let it do a run."""
        self.run = run
        self.send(run)

    def send(self, message: Any) -> None:
        """Send it the job or the number of a run."""
        try:
            self.connection.send(message)
        except OSError:
            pass  # it died already, which the result will show

    def take_result(self, job: RetrainJob) -> None:
        """Wait for the run's end; an error of the worker's is raised here."""
        try:
            failure = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            killed = f"killed by signal {-code}, perhaps out of memory" if code and code < 0 else f"exit code {code}"
            raise EvaluationError(
                f"{job.name(self.run)}: its worker process died ({killed}). The finished runs are kept. A script that "
                'retrains with num_processes above 1 needs `if __name__ == "__main__":` around its calls; where '
                "memory is short, lower num_processes."
            ) from None
        if failure is not None:
            message, trace = failure
            raise EvaluationError(message) from RuntimeError(f"in the worker process:\n{trace}")

    def stop(self) -> None:
        """Kill it, where it still runs."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, threads: int) -> None:
    """The worker's own main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and stops everybody
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    packed = connection.recv()
    try:
        job = pickle.loads(packed)
    except Exception as error:
        message = f"A worker process cannot load make_trainer ({type(error).__name__}: {error}). {_IMPORTABLE}"
        connection.send((message, traceback.format_exc()))
        return
    while True:
        try:
            run = connection.recv()
        except EOFError:
            return
        try:
            job.run(run)
        except EvaluationError as error:
            connection.send((str(error), traceback.format_exc()))
        else:
            connection.send(None)


def _die_with_parent() -> None:
    """A parent that is killed cannot stop its workers: they would train on, beside those of the next try."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


_IMPORTABLE = (
    "With num_processes above 1, make_trainer and objective must be functions (or methods) at the top level of a "
    "module that can be imported: no lambda, no function inside another, none of a notebook or of python -c. With "
    "num_processes=1 any function will do."
)


def _packed(job: RetrainJob, num_processes: int) -> bytes:
    """The job as it is sent to the workers."""
    try:
        return pickle.dumps(job)
    except Exception as error:  # PicklingError, AttributeError, TypeError: it depends on what cannot be pickled
        raise EvaluationError(
            f"make_trainer, the dataset or the objective cannot be sent to {num_processes} worker processes "
            f"({type(error).__name__}: {error}). {_IMPORTABLE}"
        ) from error


def _cuda_devices() -> list[str]:
    """The devices that this process may use, as CUDA_VISIBLE_DEVICES calls them."""
    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",")][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def _environment(threads: int, device: str | None) -> Iterator[None]:
    """What a worker's torch reads when it is imported: set here, since that is before our code runs there."""
    values: dict[str, Any] = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": device}
    before = {name: os.environ.get(name) for name in values}
    try:
        os.environ.update({name: value for name, value in values.items() if value is not None})
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

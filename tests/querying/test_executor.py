"""Where the work of a query runs."""

import threading

import pytest
import torch

from lorif_hf.querying import executor
from lorif_hf.querying.executor import scoring_threads, worker_count


@pytest.fixture(autouse=True)
def put_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads, workers, share", [(1, 1, 1), (3, 3, 1), (8, 8, 1), (16, 8, 2), (20, 8, 2)])
def test_each_of_our_threads_has_its_share_of_torchs(threads, workers, share):
    torch.set_num_threads(threads)
    assert worker_count() == workers
    barrier = threading.Barrier(workers)

    def work():
        barrier.wait(30)  # all of them at the same time
        return torch.get_num_threads(), threading.current_thread().name

    with scoring_threads() as pool:
        results = [future.result(30) for future in [pool.submit(work) for _ in range(workers)]]
    assert {count for count, _ in results} == {share}
    assert len({name for _, name in results}) == workers
    assert all(name.startswith("lorif-score") for _, name in results)
    assert torch.get_num_threads() == threads


def test_no_more_run_at_once_than_there_are_workers(monkeypatch):
    monkeypatch.setattr(executor, "worker_count", lambda: 2)
    running, most, lock = [0], [0], threading.Lock()
    pause = threading.Event()

    def work():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        pause.wait(0.01)
        with lock:
            running[0] -= 1

    with scoring_threads() as pool:
        for future in [pool.submit(work) for _ in range(12)]:
            future.result(30)
    assert most[0] == 2


def test_torchs_threads_are_put_back_after_an_error():
    torch.set_num_threads(3)
    with pytest.raises(ZeroDivisionError), scoring_threads() as pool:
        pool.submit(lambda: 1 / 0).result(30)
    assert torch.get_num_threads() == 3

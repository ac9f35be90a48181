"""Where the work of a query runs."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import make_gpt2

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.querying import executor
from lorif_hf.querying.executor import scoring_pool, worker_count


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

    pool = scoring_pool()
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

    pool = scoring_pool()
    for future in [pool.submit(work) for _ in range(12)]:
        future.result(30)
    assert most[0] == 2


def in_a_fresh_thread(function=torch.get_num_threads):
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(function).result(30)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_nobody_elses_number_of_threads_changes(threads):
    """Not that of the caller, nor that with which a new thread begins, nor that of a thread that chose its own."""
    torch.set_num_threads(threads)
    with ThreadPoolExecutor(1) as own:
        own.submit(torch.get_num_threads).result(30)  # a thread's first look sets what it has to what all have
        own.submit(torch.set_num_threads, 5).result(30)
        torch.set_num_threads(threads)
        with pytest.raises(ZeroDivisionError):
            scoring_pool().submit(lambda: 1 / 0).result(30)
        assert (torch.get_num_threads(), in_a_fresh_thread()) == (threads, threads)
        assert own.submit(torch.get_num_threads).result(30) == 5


def test_all_queries_share_one_pool_and_another_setting_has_its_own():
    torch.set_num_threads(3)
    first = scoring_pool()
    assert scoring_pool() is first and in_a_fresh_thread(scoring_pool) is first
    torch.set_num_threads(2)
    second = scoring_pool()
    assert second is not first and second.submit(torch.get_num_threads).result(30) == 1
    torch.set_num_threads(3)
    assert scoring_pool() is first


def test_threads_that_ask_at_once_get_one_pool(monkeypatch):
    monkeypatch.setattr(executor, "_pools", {})
    torch.set_num_threads(3)
    barrier = threading.Barrier(6)

    def ask():
        torch.get_num_threads()
        barrier.wait(30)
        return scoring_pool()

    with ThreadPoolExecutor(6) as askers:
        pools = [future.result(30) for future in [askers.submit(ask) for _ in range(6)]]
    assert len({id(pool) for pool in pools}) == 1
    assert {in_a_fresh_thread(), torch.get_num_threads()} == {3}


FORKED = """
import os, sys, torch
from lorif_hf.querying.executor import scoring_pool
torch.set_num_threads(2)
assert scoring_pool().submit(int, "3").result(30) == 3
child = os.fork()
if child == 0:
    os._exit(scoring_pool().submit(int, "7").result(30))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "7\n", done.stderr


def test_threads_that_query_at_once_give_the_scores_of_one_after_another(gpt2, rows, tmp_path):
    """Each thread with a model of its own: what they share is the index, torch and the pool."""
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=InfluenceConfig(shard_size=4, factor_rank=2))
    torch.set_num_threads(4)
    models, queries = [make_gpt2() for _ in range(4)], [rows.select([i, i + 4]) for i in range(4)]
    fresh = InfluenceIndex.from_pretrained(tmp_path / "index")
    barrier = threading.Barrier(4)

    def ask(i):
        barrier.wait(30)
        answers = []
        for _ in range(4):
            view = fresh.select([1, 5, 9, 17])
            best = fresh.attribute(models[i], queries[i], top_k=3)
            answers.append((fresh.scores(models[i], queries[i]), view.scores(models[i], queries[i]), best.scores))
        return answers, torch.get_num_threads()

    with ThreadPoolExecutor(4) as askers:
        answers = list(askers.map(ask, range(4)))
    assert [count for _, count in answers] == [4] * 4
    assert (torch.get_num_threads(), in_a_fresh_thread()) == (4, 4)
    for i, (given, _) in enumerate(answers):
        expected = index.scores(gpt2, queries[i]), index.attribute(gpt2, queries[i], top_k=3).scores
        for whole, view, best in given:
            assert torch.equal(whole, expected[0]) and torch.equal(view, expected[0][:, [1, 5, 9, 17]])
            assert torch.equal(best, expected[1])

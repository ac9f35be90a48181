"""Where the work of a query runs: threads of our own, each with a share of torch's."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from typing import Any

import torch


_MOST_THREADS = 8  # beyond, they wait for Python's lock more than they score; torch's own threads take the rest

_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def worker_count() -> int:
    """Tasks that run at the same time."""
    return min(torch.get_num_threads(), _MOST_THREADS)


def scoring_pool() -> Executor:
    """A pool of [`worker_count`] threads, which all queries of this process share.

    A product of small matrices gains nothing from torch's threads, which must meet at the end of each; ours only meet
    at the end of a shard. Nobody else's number of threads changes.
    """
    workers = worker_count()
    share = max(1, torch.get_num_threads() // workers)
    with _lock:
        if (workers, share) not in _pools:
            _pools[workers, share] = _new_pool(workers, share)
        return _pools[workers, share]


def _new_pool(workers: int, share: int) -> ThreadPoolExecutor:
    """Threads that have set their share of torch's.

    torch's setting is that of the calling thread, and of those that use torch for the first time later: it is put back
    by a thread of its own, so that no thread but the pool's gets another one. The pool is kept, so this is done once.
    """
    before = _in_a_fresh_thread(torch.get_num_threads)
    pool = ThreadPoolExecutor(workers, "lorif-score", _take_share, (share,))
    together = threading.Barrier(workers)
    try:
        wait([pool.submit(together.wait) for _ in range(workers)])  # all of them have begun
    except BaseException:
        together.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        _in_a_fresh_thread(torch.set_num_threads, before)
    return pool


def _take_share(share: int) -> None:
    torch.get_num_threads()  # a thread's first look sets what it has to what all have
    torch.set_num_threads(share)


def _in_a_fresh_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(function, *arguments).result()


def _forget_pools() -> None:
    """A forked process has the pools, but not their threads."""
    _pools.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget_pools)

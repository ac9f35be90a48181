"""Where the work of a query runs: threads of our own, each with a share of torch's."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch


_MOST_THREADS = 8  # beyond, they wait for Python's lock more than they score; torch's own threads take the rest


def worker_count() -> int:
    """Tasks that run at the same time."""
    return min(torch.get_num_threads(), _MOST_THREADS)


@contextmanager
def scoring_threads() -> Iterator[Executor]:
    """A pool of [`worker_count`] threads.

    A product of small matrices gains nothing from torch's threads, which must meet at the end of each; ours only meet
    at the end of a shard.
    """
    total, workers = torch.get_num_threads(), worker_count()
    share = max(1, total // workers)
    try:
        with ThreadPoolExecutor(workers, "lorif-score", torch.set_num_threads, (share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(total)  # a thread's setting is in part that of all

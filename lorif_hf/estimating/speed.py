"""How fast this machine is."""

import statistics
import time
from collections.abc import Callable

import torch


def measured_speed(size: int = 1024, clock: Callable[[], float] = time.perf_counter) -> float:
    """Floating-point operations per second of a float32 matrix product on this machine (a GPU where there is one).

    Args:
        size (`int`, *optional*, defaults to 1024): of the matrices.
        clock (`Callable`, *optional*): tells seconds.
    """
    matrix = torch.randn(size, size, device="cuda" if torch.cuda.is_available() else "cpu")
    times = []
    for _ in range(6):
        start = clock()
        float((matrix @ matrix)[0, 0])
        times.append(clock() - start)
    return 2 * size**3 / statistics.median(times[1:])

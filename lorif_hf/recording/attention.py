"""torch's own attention, taken apart: its fast path passes over the modules inside."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


_lock = threading.Lock()
_held: list[bool] = []  # of each holder, what the setting was before the first of them


@contextmanager
def whole_attention() -> Iterator[None]:
    """Switch off the fast path of `nn.TransformerEncoder`, which frozen weights turn on, for as long as anybody needs.

    The setting is that of the process, and several threads may hold it at once, each for a model of its own: the last
    restores it.
    """
    with _lock:
        _held.append(_held[0] if _held else torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _lock:
            before = _held.pop()
            if not _held:
                torch.backends.mha.set_fastpath_enabled(before)

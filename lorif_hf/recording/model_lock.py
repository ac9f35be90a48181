"""One recording at a time for each model: whoever records changes flags and hooks of the model for a while."""

import threading
from weakref import WeakKeyDictionary

from torch import nn

from ..layers.modules import base_model


_locks: "WeakKeyDictionary[nn.Module, threading.RLock]" = WeakKeyDictionary()  # type: ignore[type-arg]
_guard = threading.Lock()


def model_lock(model: nn.Module) -> "threading.RLock":
    """The lock of a model, the same one for a `PeftModel` and what it wraps."""
    with _guard:
        return _locks.setdefault(base_model(model), threading.RLock())

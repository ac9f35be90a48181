"""Values that are made once and then shared by all threads."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Once(Generic[Key, Value]):
    """A value for each key, made by the first thread that asks for it; the others wait for that very one.

    What is kept belongs to this process (mapped files, say): a pickled or copied one is empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Key, Future[Value]] = {}

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key; `make` is called where there is none. An error of it is raised, and nothing is kept."""
        with self._lock:
            value = self._values.get(key)
            mine: Future[Value] | None = None
            if value is None:
                value = mine = self._values[key] = Future()
        if mine is not None:
            try:
                mine.set_result(make())
            except BaseException as error:
                with self._lock:
                    del self._values[key]
                mine.set_exception(error)
                raise
        return value.result()

    def __reduce__(self) -> Any:
        return type(self), ()

"""A tokenizer that came with an index, from anybody, in a process with limits.

A normaliser can double a character forty times, a regular expression can backtrack for ever, a chat template can loop:
each is stopped in time, and what it took is given back with its process. JSON goes both ways, nothing is unpickled.
"""

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from transformers.utils import get_json_schema


# No honest tokenizer meets these on a machine at work.
START_SECONDS = 120  # the imports, from a slow disk, and the loading
REQUEST_SECONDS = 20
MEMORY = 4 << 30  # bytes beside what the imports take
MOST_STOPS = 3  # one after the other, before nothing more is asked: a thousand queries would each take their seconds
LONGEST_ANSWER = 1 << 25  # bytes of JSON: some five million tokens

_WORKER = Path(__file__).with_name("tokenizer_worker.py")


class TokenizerError(Exception):
    """What a tokenizer in a process did wrong, as the reason in a [`~lorif_hf.errors.QueryError`]."""


class TokenizerStoppedError(TokenizerError):
    """It met a limit, or its process ended; another try would take as long."""


class TokenizerProcess:
    """As much of a tokenizer as queries need, in a child process that starts when it is first asked.

    A process that was stopped is started anew for the next request. A tokenizer that could not be loaded, or was
    stopped again and again, is not tried any more. A copy, a pickle and a forked process start a child of their own.

    Args:
        folder (`Callable`): gives a context whose value is the folder to load the tokenizer from; it pickles if copies
            are to be pickled.
    """

    def __init__(self, folder: Callable[[], AbstractContextManager[Path]]):
        self._folder = folder
        self.__setstate__(self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._child: _Child | None = None
        self._ending: Callable[[], Any] | None = None
        self._failure: str | None = None
        self._stops = 0  # one after the other
        self._lock, self._owner = threading.RLock(), os.getpid()

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        """`input_ids` of one text, and `token_type_ids` and `labels` where the tokenizer has them."""
        return self._lists(self._ask("encode", text=text, options=options))

    def apply_chat_template(self, messages: list[Any], **options: Any) -> dict[str, list[int]]:
        """`input_ids` of one chat."""
        return self._lists(self._ask("chat", messages=messages, options=options))

    def decode(self, ids: list[int]) -> str:
        return str(self._ask("decode", ids=ids))

    @property
    def chat_template(self) -> bool:
        """Whether there is one."""
        return bool(self._loaded().about.get("chat_template"))

    @property
    def eos_token_id(self) -> int | None:
        return self._token("eos_token_id")

    @property
    def mask_token_id(self) -> int | None:
        return self._token("mask_token_id")

    @property
    def pad_token_id(self) -> int | None:
        """`None` also where the tokenizer cannot be loaded: tokens need none of it."""
        try:
            return self._token("pad_token_id")
        except TokenizerError:
            return None

    def close(self) -> None:
        """End the child. The next request starts another."""
        self._child = None
        if self._ending is not None:
            self._ending()

    def _token(self, name: str) -> int | None:
        token = self._loaded().about.get(name)
        return token if isinstance(token, int) else None

    def _lists(self, encoded: Any) -> dict[str, list[int]]:
        if not isinstance(encoded, dict) or not all(isinstance(values, list) for values in encoded.values()):
            raise TokenizerError("it gave no list of tokens")
        return encoded

    def _ask(self, call: str, **arguments: Any) -> Any:
        with self._unforked():
            try:
                answer = self._loaded().ask(REQUEST_SECONDS, call, arguments)
            except TokenizerStoppedError as error:
                self._stops += 1
                if self._stops == MOST_STOPS:
                    self._failure = str(error)
                raise
            self._stops = 0
            return answer

    def _loaded(self) -> "_Child":
        """The child with the tokenizer loaded."""
        with self._unforked():
            if self._failure is not None:
                raise TokenizerStoppedError(self._failure)
            if self._child is None or not self._child.running:
                self.close()
                self._child = _Child()
                self._ending = weakref.finalize(self, self._child.end)
                try:
                    with self._folder() as folder:
                        about = self._child.ask(START_SECONDS, "load", {"folder": str(folder)})
                except TokenizerError as error:
                    self.close()
                    self._failure = str(error)
                    raise
                self._child.about = about if isinstance(about, dict) else {}
            return self._child

    def _unforked(self) -> threading.RLock:
        """The lock of this process: in a forked one, the child and the lock are the parent's."""
        if self._owner != os.getpid():
            self.__setstate__(self.__getstate__())
        return self._lock


class _Child:
    """A process that answers one request after the other."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {}
        self._owner = os.getpid()
        few_threads = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **few_threads, **offline},  # threads would each reserve some of the memory
                start_new_session=True,  # an interrupt of the terminal is the parent's to answer
            )
            self._write(_line({"path": sys.path, "memory": MEMORY}))
        except (OSError, TypeError) as error:  # a Python inside of another program may have no executable
            raise TokenizerStoppedError(f"no process for it could be started: {error}") from error

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ask(self, seconds: int, call: str, arguments: dict[str, Any]) -> Any:
        """The answer to a request. Whatever ends it early, an interrupt too, ends the process: an answer that nobody
        waits for must not be taken for the next one's.

        Raises:
            [`TokenizerError`]: the tokenizer failed; [`TokenizerStoppedError`]: it met a limit.
        """
        request = _line({"call": call, "seconds": seconds, **arguments})
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        began = time.monotonic()
        try:
            self._write(request)
            line = self._process.stdout.readline(LONGEST_ANSWER)  # type: ignore[union-attr]
        except BrokenPipeError:
            line = b""
        except BaseException:
            self.end()
            raise
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            self.end()
            if time.monotonic() - began >= seconds:
                raise TokenizerStoppedError(f"it took over {seconds} s")
            if line:
                raise TokenizerStoppedError(f"it made over {LONGEST_ANSWER:,} bytes of tokens or text")
            raise TokenizerStoppedError(
                f"its process ended, perhaps for want of memory ({MEMORY >> 30} GiB are given)"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise TokenizerError(str(answer["error"]))
        return answer["value"]

    def end(self) -> None:
        """Stop the process and wait for its end; in a forked process, it is not ours."""
        if self._owner == os.getpid():
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                try:
                    pipe.close()  # type: ignore[union-attr]
                except OSError:
                    pass  # what was not written goes to nobody
            self._process.wait()

    def _write(self, line: bytes) -> None:
        self._process.stdin.write(line)  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]


def _line(request: dict[str, Any]) -> bytes:
    """A request as a line of JSON. A function among a chat's tools goes as transformers describes it to a template."""
    return json.dumps(request, default=get_json_schema).encode() + b"\n"

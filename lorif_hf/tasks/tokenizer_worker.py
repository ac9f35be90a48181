"""The child's side of [`~lorif_hf.tasks.tokenizer_process.TokenizerProcess`]: one request a line in, one answer out.

It is run as a script and imports nothing of this package, which would load torch: a tokenizer needs none of it.
"""

import json
import os
import signal
import sys
from typing import Any


_LONGEST_REASON = 500  # characters of an error that are told


class Worker:
    """Answers requests with a tokenizer.

    Args:
        memory (`int`): bytes that it may take beside what the imports took.
    """

    def __init__(self, memory: int):
        self.memory = memory
        self.tokenizer: Any = None

    def answer(self, line: bytes) -> str:
        """The answer to a request, as JSON: {"value": ...} or {"error": ...}.

        The parent keeps the time, "seconds" of the request; twice as many end this process if the parent is gone.
        """
        try:
            request = json.loads(line)
            seconds = request.pop("seconds")
            if hasattr(signal, "alarm"):
                signal.alarm(2 * seconds)
            return json.dumps({"value": getattr(self, request.pop("call"))(**request)})
        except BaseException as error:  # a panic of a tokenizer in Rust is no Exception
            return json.dumps({"error": f"{type(error).__name__}: {str(error)[:_LONGEST_REASON]}"})
        finally:
            if hasattr(signal, "alarm"):
                signal.alarm(0)

    def load(self, folder: str) -> dict[str, Any]:
        """Load the tokenizer of a folder; what is asked of it without a text."""
        sys.modules["torch"] = None  # type: ignore[assignment]  # to import it takes longer than all the rest
        os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
        from transformers import AutoTokenizer

        _limit_memory(self.memory)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        names = ("pad_token_id", "eos_token_id", "mask_token_id")
        tokens = {name: getattr(self.tokenizer, name, None) for name in names}
        return {**tokens, "chat_template": bool(getattr(self.tokenizer, "chat_template", None))}

    def encode(self, text: str, options: dict[str, Any]) -> dict[str, list[int]]:
        encoded = self.tokenizer(text, **options)
        return {name: encoded[name] for name in ("input_ids", "token_type_ids", "labels") if name in encoded}

    def chat(self, messages: list[Any], options: dict[str, Any]) -> dict[str, list[int]]:
        return {"input_ids": self.tokenizer.apply_chat_template(messages, **options)["input_ids"]}

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids)
        return text


def _limit_memory(extra: int) -> None:
    """Let this process grow by so many bytes, where the system can tell its size and keep a limit."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            size = int(file.read().split()[0]) * resource.getpagesize() + extra
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")  # a system without memory left stops this process, not the one with the model
    except (ImportError, OSError, ValueError):
        pass  # the time is limited all the same


def main() -> None:
    """Answer until the parent closes the pipe. What libraries print goes nowhere: answers alone go to the parent."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    setup = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = setup.pop("path")
    worker = Worker(setup["memory"])
    for line in sys.stdin.buffer:
        answers.write(worker.answer(line) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

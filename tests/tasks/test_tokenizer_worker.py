"""The child's side: one line of JSON in, one out, whatever the tokenizer does."""

import json
import subprocess
import sys

import pytest

from lorif_hf.tasks import tokenizer_worker
from lorif_hf.tasks.tokenizer_worker import Worker


def answer(worker, call, **arguments):
    return json.loads(worker.answer(json.dumps({"call": call, "seconds": 20, **arguments}).encode()))


def test_a_worker_answers_as_its_tokenizer_does(tokenizer):
    worker = Worker(1 << 30)
    worker.tokenizer = tokenizer
    encoded = {key: value for key, value in tokenizer("The capital").items() if key != "attention_mask"}
    assert answer(worker, "encode", text="The capital", options={}) == {"value": encoded}
    chat = [{"role": "user", "content": "x"}]
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    found = answer(worker, "chat", messages=chat, options={"add_generation_prompt": True})
    assert found == {"value": {"input_ids": expected}}
    assert answer(worker, "decode", ids=encoded["input_ids"]) == {"value": "The capital"}


class PanicException(BaseException):  # its name in Rust's pyo3
    pass


@pytest.mark.parametrize("kind", [PanicException, OverflowError, RecursionError, MemoryError, KeyboardInterrupt])
def test_whatever_a_tokenizer_raises_is_an_answer(kind):
    def failing(text):
        raise kind("y" * 10_000)

    worker = Worker(1 << 30)
    worker.tokenizer = failing
    (error,) = answer(worker, "encode", text="x", options={}).values()
    assert error == f"{kind.__name__}: {'y' * 500}"


def test_a_line_that_is_no_request_is_an_answer_too():
    assert json.loads(Worker(0).answer(b"{"))["error"].startswith("JSONDecodeError: ")


def test_a_script_that_loads_neither_torch_nor_this_package_and_prints_answers_alone(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    requests = [
        {"path": sys.path, "memory": 1 << 32},
        {"call": "load", "seconds": 120, "folder": str(tmp_path)},
        {"call": "encode", "seconds": 20, "text": "The capital", "options": {}},
    ]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    seen = "import sys; print(sorted({'torch', 'lorif_hf', 'datasets'} & {n for n, m in sys.modules.items() if m}))"
    script = f"import runpy; runpy.run_path({tokenizer_worker.__file__!r}, run_name='__main__'); {seen}"
    closing = script.replace("print(", "sys.stderr.write(str(").replace("if m}))", "if m})))")
    done = subprocess.run([sys.executable, "-c", closing], input=lines, capture_output=True, text=True, check=True)
    loaded, encoded = map(json.loads, done.stdout.splitlines())
    assert loaded == {"value": {"pad_token_id": 0, "eos_token_id": 2, "mask_token_id": None, "chat_template": True}}
    assert encoded["value"]["input_ids"] == tokenizer("The capital")["input_ids"]
    assert done.stderr.endswith("[]"), done.stderr

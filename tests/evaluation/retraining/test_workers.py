"""Runs in worker processes: the same losses, errors that name the run, and nobody left behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from retrained import Interrupted, make_bank, make_trainer

from lorif_hf.errors import EvaluationError
from lorif_hf.evaluation.retraining.workers import _cuda_devices


@pytest.mark.slow
def test_workers_measure_what_one_process_does_also_when_one_is_killed(tmp_path):
    """What they finished stays, and the rest is done in this process: the bank is the same but for rounding, which
    depends on how many threads torch has."""
    message = r"Run \d of 6 \(subset \d, seed \d\): its worker process died, perhaps out of memory"
    with pytest.raises(EvaluationError, match=message) as caught:
        make_bank(tmp_path / "two", Interrupted(tmp_path, 3, "kill"), num_processes=2)
    assert "The finished runs are kept" in str(caught.value) and '`if __name__ == "__main__":`' in str(caught.value)
    assert 1 <= len(list((tmp_path / "two" / ".lorif-build").glob("run-*"))) <= 2
    parallel, serial = make_bank(tmp_path / "two"), make_bank(tmp_path / "one")
    assert parallel.info == serial.info and torch.equal(parallel.membership, serial.membership)
    torch.testing.assert_close(parallel.losses_by_seed, serial.losses_by_seed, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_an_error_in_a_worker_is_told_with_its_run_and_where_it_was(tmp_path):
    message = r"Run \d of 6 \(subset 0, seed \d\) failed with ValueError: bad luck"
    with pytest.raises(EvaluationError, match=message) as caught:
        make_bank(tmp_path / "bank", Interrupted(tmp_path, 1, "raise"), num_processes=2)
    where = str(caught.value.__cause__)
    assert "in the worker process" in where and 'raise ValueError("bad luck")' in where


def test_what_cannot_be_sent_to_workers_is_refused_before_any_is_started(tmp_path):
    def inside(train_dataset, seed):
        return make_trainer(train_dataset, seed)

    message = "cannot be sent to 2 worker processes .*top level of a module that can be imported: no lambda"
    with pytest.raises(EvaluationError, match=message):
        make_bank(tmp_path / "bank", inside, num_processes=2)


SCRIPT = """
import signal
import sys
sys.path.insert(0, {tests!r})
from retrained import Interrupted, make_bank
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
if __name__ == "__main__":
    make_bank({bank!r}, Interrupted({count!r}, 1, "hang"), num_processes=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes as Linux shows them")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_workers_end_with_whoever_started_them(tmp_path, how):
    script = tmp_path / "script.py"
    places = {"tests": Path(__file__).parents[2] / "support", "bank": tmp_path / "bank", "count": tmp_path}
    script.write_text(SCRIPT.format(**{name: str(place) for name, place in places.items()}))
    parent = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)
    try:
        workers = _until(lambda: {int(path.name.split("-")[1]) for path in tmp_path.glob("training-*")}, 2)
        assert parent.pid not in workers
        parent.send_signal(how)
        _, errors = parent.communicate(timeout=60)
        assert parent.returncode != 0 and ("KeyboardInterrupt" in errors) == (how == signal.SIGINT)
        _until(lambda: [worker for worker in workers if not _runs(worker)], 2)
    finally:
        parent.kill()


def _until(look, count):
    """What `look` finds, once it finds so many."""
    for _ in range(1800):
        seen = look()
        if len(seen) == count:
            return seen
        time.sleep(0.1)
    raise AssertionError(f"found {seen}, expected {count}")


def _runs(process):
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_function_of_a_script_without_a_file_is_an_error_of_ours(tmp_path):
    """`python -c`: it can be pickled, but no other process can import it."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2] / "support")!r})
import retrained
def mine(train_dataset, seed):
    return retrained.make_trainer(train_dataset, seed)
retrained.make_bank({str(tmp_path / "bank")!r}, mine, num_processes=2)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert "A worker process cannot load make_trainer (AttributeError: " in done.stderr and "python -c" in done.stderr


def test_devices_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _cuda_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-7")
    assert _cuda_devices() == ["5", "GPU-7"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _cuda_devices() == []

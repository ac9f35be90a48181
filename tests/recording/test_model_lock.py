"""One recording at a time for each model."""

import threading

import pytest
import torch
from recordings import build, draw, token_batch
from torch import nn

from lorif_hf.errors import RecordingError
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.model_lock import model_lock
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective


def recorder_of(model):
    modules = tracked_modules(model)
    return GradientRecorder(model, modules, draw(modules, 1), LossObjective(task_of(model)))


def in_a_thread(function):
    """Run it in a thread of Python's, and raise here what it raises there."""
    raised = []

    def run():
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def test_a_model_has_one_lock_whatever_it_is_wrapped_in():
    adapted, other = build("llama", lora={}), build("llama")
    assert model_lock(adapted) is model_lock(adapted.get_base_model())
    assert model_lock(adapted) is not model_lock(other)


def test_the_same_thread_may_hold_it_twice_and_another_waits():
    lock = model_lock(nn.Linear(1, 1))
    got = []
    with lock, lock:
        in_a_thread(lambda: got.append(lock.acquire(blocking=False)))
    in_a_thread(lambda: got.append(lock.acquire(blocking=False)) or lock.release())
    assert got == [False, True]


def test_recordings_of_one_model_from_four_threads_are_those_of_one_after_another():
    model, batches = build("gpt2"), [token_batch([5, 3, 7], seed=seed) for seed in range(12)]

    def record(batch):
        with recorder_of(model) as recorder:
            return recorder.record(batch)

    expected, results = [record(batch) for batch in batches], [None] * len(batches)

    def work(part):
        for number in range(part, len(batches), 4):
            results[number] = record(batches[number])

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, true in zip(results, expected, strict=True):
        assert torch.equal(result.losses, true.losses)
        assert all(torch.equal(result.gradients[name], true.gradients[name]) for name in true.gradients)
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model._forward_hooks


def test_a_model_that_another_thread_calls_is_refused_and_the_call_is_let_through():
    model, batch = build("gpt2").eval(), token_batch([5, 3])
    with torch.no_grad():
        expected = model(**batch).logits
    with recorder_of(model) as recorder:
        layer = model.transformer.h[0].mlp.c_fc
        hook = layer.register_forward_hook(lambda *_: in_a_thread(use))
        outputs = []

        def use():
            hook.remove()
            with torch.no_grad():
                outputs.append(model(**batch).logits)

        with pytest.raises(RecordingError, match="was called by another thread while the model was recorded.*a copy"):
            recorder.record(batch)
    torch.testing.assert_close(outputs[0], expected)


def test_weights_that_change_while_they_are_recorded_are_refused():
    model, batch = build("gpt2"), token_batch([5, 3])
    weight = model.transformer.h[0].mlp.c_fc.weight
    with recorder_of(model) as recorder:
        recorder.record(batch)
        in_a_thread(lambda: torch.nn.init.normal_(weight))
        with pytest.raises(RecordingError, match=r"'transformer.h.0.mlp.c_fc' was changed by another thread"):
            recorder.record(batch)

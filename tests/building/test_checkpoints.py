"""Which checkpoints are in a folder, and what each counts for."""

import json

import pytest

from lorif_hf.building.checkpoints import Checkpoint, find_checkpoints, tracin_weights
from lorif_hf.errors import CheckpointError


def make(folder, step=None, rates=(), file="model.safetensors"):
    """A folder as the Trainer leaves it; `rates` are (step, learning rate)."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(b"")
    if step is not None:
        log = [{"step": at, "learning_rate": rate, "loss": 1.0} for at, rate in rates]
        log.insert(0, {"step": 1, "eval_loss": 2.0})
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": log}))
    return folder


def test_they_come_in_the_order_of_their_steps(tmp_path):
    for step in (100, 20, 3):
        make(tmp_path / "out" / f"checkpoint-{step}", step)
    make(tmp_path / "out" / "checkpoint-old", 50)
    (tmp_path / "out" / "checkpoint-7").mkdir()  # without weights: its saving was interrupted
    make(tmp_path / "out" / "runs")
    found = find_checkpoints(tmp_path / "out")
    assert [checkpoint.step for checkpoint in found] == [3, 20, 50, 100]
    assert found[2] == Checkpoint(tmp_path / "out" / "checkpoint-old", 50)
    assert find_checkpoints([found[3].folder, str(found[0].folder)]) == [found[0], found[3]]
    assert find_checkpoints(found[1].folder) == [found[1]]
    named = make(tmp_path / "checkpoint-12")
    assert find_checkpoints(named) == [Checkpoint(named, 12)], "by its name, where the Trainer noted nothing"


@pytest.mark.parametrize(
    "file", ["adapter_model.safetensors", "other/adapter_model.safetensors", "model.safetensors.index.json"]
)
def test_whatever_holds_weights_is_one(tmp_path, file):
    folder = make(tmp_path / "checkpoint-4", 4, file=file)
    assert find_checkpoints(tmp_path) == [Checkpoint(folder, 4)]


def test_models_without_steps_stay_in_their_order(tmp_path):
    folders = [make(tmp_path / name) for name in ("b", "a", "c")]
    assert [checkpoint.folder for checkpoint in find_checkpoints(folders)] == folders
    runs = [make(tmp_path / f"run-{name}" / "checkpoint-9", 9).parent for name in ("y", "x")]
    assert [checkpoint.folder.parent for checkpoint in find_checkpoints(runs)] == runs


def test_what_holds_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder: expected model.safetensors, "):
        find_checkpoints(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: expected .* in checkpoint-\* folders of it"):
        find_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="No checkpoints were given"):
        find_checkpoints([])
    make(tmp_path / "checkpoint-1", file="pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle, which is never read here"):
        find_checkpoints(tmp_path)
    folder = make(tmp_path / "checkpoint-2", 2)
    with pytest.raises(CheckpointError, match="given twice"):
        find_checkpoints([folder, tmp_path / "checkpoint-2"])


def test_weights_are_learning_rates(tmp_path):
    """By hand: the mean of the interval where intervals are alike."""
    rates = [(step, 1.0 - step / 10) for step in range(1, 7)]
    for step in (2, 4, 6):
        make(tmp_path / "even" / f"checkpoint-{step}", step, rates[:step])
    assert tracin_weights(find_checkpoints(tmp_path / "even")) == pytest.approx([0.85, 0.65, 0.45])
    for step in (4, 5):
        make(tmp_path / "uneven" / f"checkpoint-{step}", step, rates[:step])
    weights = tracin_weights(find_checkpoints(tmp_path / "uneven"))
    assert weights == pytest.approx([(0.9 + 0.8 + 0.7 + 0.6) / 2.5, 0.5 / 2.5])
    assert sum(weights) * 2.5 == pytest.approx(sum(rate for _, rate in rates[:5])), "in all, those of all steps"


def test_rates_are_interpolated_between_what_was_logged(tmp_path):
    make(tmp_path / "checkpoint-10", 10, [(2, 0.2), (6, 0.6)])
    steps = [0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]
    assert tracin_weights(find_checkpoints(tmp_path)) == pytest.approx([sum(steps) / 10])


def test_without_learning_rates_weights_must_be_given(tmp_path):
    make(tmp_path / "checkpoint-2", 2)
    with pytest.raises(CheckpointError, match="knows no learning rate .*: pass weights=, what each checkpoint counts"):
        tracin_weights(find_checkpoints(tmp_path))
    twice = [make(tmp_path / run / "checkpoint-3", 3, [(1, 0.1)]) for run in ("a", "b")]
    with pytest.raises(CheckpointError, match=r"b/checkpoint-3 is of step 3, as is another .* not the checkpoints of"):
        tracin_weights(find_checkpoints(twice))
    with pytest.raises(CheckpointError, match="model says no step: these are not"):
        tracin_weights(find_checkpoints(make(tmp_path / "model")))


@pytest.mark.parametrize(
    "text",
    ["", "[", "3", '{"global_step": "2", "log_history": 4}', '{"log_history": [1, {"step": 1}, null]}'],
    ids=str,
)
def test_a_strange_state_is_no_crash(tmp_path, text):
    folder = make(tmp_path / "checkpoint-2")
    (folder / "trainer_state.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read|knows no learning rate"):
        tracin_weights(find_checkpoints(folder))

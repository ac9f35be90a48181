"""Building: whole, resumable, byte-identical, and clear about bad input."""

import hashlib
import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.errors import (
    BuildFolderError,
    ConfigError,
    DatasetError,
    NonFiniteGradientError,
    RecordingError,
    UnsupportedModuleError,
)
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.storage.files import TensorFile


CONFIG = plain_config(projection_factor=2, shard_size=6)


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def factors(index, module=0):
    entry = index.manifest.modules[module]
    reader = index._queried.reader
    blocks = [reader.load(shard, [entry])[entry.name] for shard in reader.shards]
    return tuple(torch.cat([block[side] for block in blocks]).float() for side in ("u", "v"))


def test_a_second_build_is_byte_identical(gpt2, rows, tmp_path):
    for name in ("first", "second"):
        InfluenceIndex.build(gpt2, rows, tmp_path / name, config=CONFIG)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


def test_the_seed_changes_the_factors(gpt2, rows, tmp_path):
    one = InfluenceIndex.build(gpt2, rows, tmp_path / "one", config=CONFIG)
    two = InfluenceIndex.build(gpt2, rows, tmp_path / "two", config=plain_config(projection_factor=2, seed=1))
    assert not torch.allclose(factors(one)[0], factors(two)[0], atol=1e-2)


def test_the_folder_holds_the_files_of_an_index_and_nothing_else(gpt2, rows, tmp_path):
    InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    assert sorted(digests(tmp_path / "index")) == [
        "README.md",
        "curvature/curvature.safetensors",
        *[f"data/train-0000{i}.parquet" for i in range(1, 5)],
        *[f"factors/factors-0000{i}.safetensors" for i in range(1, 5)],
        "influence_config.json",
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_factors_do_not_depend_on_the_batch(gpt2, rows, tmp_path, batch_size):
    config = plain_config(projection_factor=2, factor_rank=2, dtype="float32", shard_size=6)
    whole = InfluenceIndex.build(gpt2, rows, tmp_path / "whole", config=config, batch_size=8)
    other = InfluenceIndex.build(gpt2, rows, tmp_path / "other", config=config, batch_size=batch_size)
    for module in range(len(whole.manifest.modules)):
        for one, two in zip(factors(whole, module), factors(other, module), strict=True):
            scale = one.flatten(1).norm(dim=1).clamp_min(1e-12)
            assert ((one - two).flatten(1).norm(dim=1) / scale).max() < 1e-5


def test_factors_do_not_depend_on_padding_or_neighbours(gpt2, tmp_path):
    config = plain_config(projection_factor=2, dtype="float32")
    short, long = {"input_ids": [3, 4, 5, 6]}, {"input_ids": list(range(1, 16))}
    alone = InfluenceIndex.build(gpt2, Dataset.from_list([short]), tmp_path / "alone", config=config)
    padded = InfluenceIndex.build(gpt2, Dataset.from_list([short, long]), tmp_path / "padded", config=config)
    for module in range(len(alone.manifest.modules)):
        for one, two in zip(factors(alone, module), factors(padded, module), strict=True):
            assert (one[0] - two[0]).norm() <= 1e-5 * one[0].norm()


class Killed(BaseException):
    """Not an Exception: like a signal, nothing may swallow it."""


@pytest.mark.parametrize("killed_after", [0, 1, 7, 13, 19])
def test_a_build_killed_while_recording_goes_on_and_ends_with_the_same_bytes(
    gpt2, rows, tmp_path, monkeypatch, killed_after
):
    InfluenceIndex.build(gpt2, rows, tmp_path / "whole", config=CONFIG, batch_size=1)
    record, calls = GradientRecorder.record, []

    def counted(self, batch, batch_rows=None, taken=None):
        if len(calls) == killed_after:
            raise Killed
        calls.append(batch_rows)
        return record(self, batch, batch_rows, taken)

    with monkeypatch.context() as patch:
        patch.setattr(GradientRecorder, "record", counted)
        with pytest.raises(Killed):
            InfluenceIndex.build(gpt2, rows, tmp_path / "killed", config=CONFIG, batch_size=1)
    recorded = []

    def counted_again(self, batch, batch_rows=None, taken=None):
        recorded.extend(batch_rows)
        return record(self, batch, batch_rows, taken)

    monkeypatch.setattr(GradientRecorder, "record", counted_again)
    InfluenceIndex.build(gpt2, rows, tmp_path / "killed", config=CONFIG, batch_size=1)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert recorded == list(range(killed_after // 6 * 6, 20)), "recording must go on at the first missing shard"


def test_a_build_killed_while_fitting_keeps_the_fitted_modules(gpt2, rows, tmp_path, monkeypatch):
    from lorif_hf.curvature import low_rank

    InfluenceIndex.build(gpt2, rows, tmp_path / "whole", config=CONFIG)
    fit, calls = low_rank.fit, []

    def counted(*args, **kwargs):
        if len(calls) == 3:
            raise Killed
        calls.append(1)
        return fit(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(low_rank, "fit", counted)
        with pytest.raises(Killed):
            InfluenceIndex.build(gpt2, rows, tmp_path / "killed", config=CONFIG)
    again = []
    monkeypatch.setattr(low_rank, "fit", lambda *a, **k: again.append(1) or fit(*a, **k))
    InfluenceIndex.build(gpt2, rows, tmp_path / "killed", config=CONFIG)
    assert len(again) == 8 - 3
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


SLOW_BUILD = """
import sys, time
sys.path.insert(0, "{tests}")
from tiny import make_gpt2, make_rows, plain_config
from lorif_hf import InfluenceIndex
from lorif_hf.recording.recorder import GradientRecorder
record = GradientRecorder.record
GradientRecorder.record = lambda self, *a: (time.sleep({seconds}), record(self, *a))[1]
config = plain_config(projection_factor=2, shard_size=6)
InfluenceIndex.build(make_gpt2(), make_rows(20), sys.argv[1], config=config, batch_size=2)
"""


@pytest.mark.slow
def test_a_build_killed_by_sigkill_goes_on_and_ends_with_the_same_bytes(gpt2, rows, tmp_path):
    InfluenceIndex.build(gpt2, rows, tmp_path / "whole", config=CONFIG, batch_size=2)
    script = SLOW_BUILD.format(tests=Path(__file__).parents[1] / "support", seconds=0.3)
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")])
    second = tmp_path / "killed" / "factors" / "factors-00002.safetensors"
    deadline = time.monotonic() + 120
    while not second.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "influence_config.json").exists()
    InfluenceIndex.build(gpt2, rows, tmp_path / "killed", config=CONFIG, batch_size=2)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_building_again_into_a_finished_index_records_nothing(gpt2, rows, tmp_path, monkeypatch):
    InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    before = digests(tmp_path / "index")
    monkeypatch.setattr(GradientRecorder, "record", None)
    InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    assert digests(tmp_path / "index") == before


@pytest.mark.parametrize(
    "change",
    [
        {"model": make_gpt2(seed=1)},
        {"dataset": make_rows(20, seed=1)},
        {"dataset": make_rows(19)},
        {"config": plain_config(projection_factor=2, shard_size=6, seed=1)},
    ],
    ids=["model", "rows", "fewer rows", "config"],
)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_a_folder_of_another_build_is_refused_and_untouched(gpt2, rows, tmp_path, monkeypatch, change, finished):
    if finished:
        InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    else:
        with monkeypatch.context() as patch, pytest.raises(TypeError):
            patch.setattr(GradientRecorder, "record", None)
            InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    before = digests(tmp_path / "index")
    call = {"model": gpt2, "dataset": rows, "config": CONFIG} | change
    kind = "an index" if finished else "an unfinished build"
    with pytest.raises(BuildFolderError, match=f"{kind} of another model, dataset or config. Choose another folder"):
        InfluenceIndex.build(call["model"], call["dataset"], tmp_path / "index", config=call["config"])
    assert digests(tmp_path / "index") == before


def test_a_folder_with_something_else_is_refused_and_untouched(gpt2, rows, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BuildFolderError, match="is not empty and holds neither an index nor an unfinished build"):
        InfluenceIndex.build(gpt2, rows, tmp_path)
    assert list(digests(tmp_path)) == ["thesis.tex"]
    with pytest.raises(BuildFolderError, match="is a file; an index needs a folder"):
        InfluenceIndex.build(gpt2, rows, tmp_path / "thesis.tex")


def test_two_builds_cannot_share_a_folder(gpt2, rows, tmp_path, monkeypatch):
    record, errors = GradientRecorder.record, []

    def nested(self, *args):
        if not errors:
            with pytest.raises(BuildFolderError, match="Another process is building the index") as caught:
                InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
            errors.append(caught.value)
        return record(self, *args)

    monkeypatch.setattr(GradientRecorder, "record", nested)
    InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    assert len(errors) == 1


def test_rank_above_the_limit_names_the_limit_and_the_module(gpt2, rows, tmp_path):
    message = (
        r"factor_rank=7 is above the limit of module 'transformer.h.0.attn.c_attn'.* 6 x 18, so the rank is at most 6"
    )
    with pytest.raises(ConfigError, match=message):
        InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=plain_config(projection_factor=2, factor_rank=7))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8"])
def test_an_impossible_batch_size_is_refused(gpt2, rows, tmp_path, batch_size):
    with pytest.raises(ConfigError, match="batch_size must be an integer of at least 1"):
        InfluenceIndex.build(gpt2, rows, tmp_path / "index", batch_size=batch_size)


def test_nothing_to_track_is_refused_before_anything_is_written(gpt2, rows, tmp_path):
    with pytest.raises(UnsupportedModuleError, match="selects no module of GPT2LMHeadModel: .* could be"):
        InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=plain_config(target_modules=["q_proj"]))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Dataset.from_dict({"input_ids": []}), "The dataset is empty"),
        (IterableDataset.from_generator(lambda: iter(())), "a stream without a length.*Pass examples_seen="),
        (Dataset.from_dict({"text": ["a", "b"]}), "no column that GPT2LMHeadModel takes. It has text; .* Tokenize it"),
        (
            Dataset.from_dict({"input_ids": [[1, 2, 3]] * 3, "labels": [[-100] * 3] * 3}),
            "None of the first 3 rows has a",
        ),
        (Dataset.from_dict({"input_ids": [[1], [2]]}), "None of the first 2 rows .* single token"),
    ],
    ids=["empty", "iterable", "no columns", "labels all -100", "single tokens"],
)
def test_bad_datasets_are_refused(gpt2, tmp_path, dataset, message):
    with pytest.raises(DatasetError, match=message):
        InfluenceIndex.build(gpt2, dataset, tmp_path / "index")
    assert not (tmp_path / "index" / "influence_config.json").exists()


def test_batches_without_labels_are_refused(gpt2, rows, tmp_path):
    with pytest.raises(DatasetError, match="no labels, which objective 'causal-lm' needs"):
        InfluenceIndex.build(
            gpt2,
            rows,
            tmp_path / "index",
            data_collator=lambda f: {"input_ids": torch.ones(len(f), 4, dtype=torch.long)},
        )


def test_rows_without_a_target_score_zero_and_are_counted(gpt2, tmp_path, caplog):
    dataset = Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 6]], "labels": [[1, 2, 3], [-100] * 3]})
    with caplog.at_level(logging.WARNING):
        index = InfluenceIndex.build(gpt2, dataset, tmp_path / "index")
    assert "1 rows have no target" in caplog.text
    assert index.scores(gpt2, {"input_ids": [1, 2, 3]})[0, 1] == 0
    assert index.self_influence()[1] == 0


def test_a_nan_gradient_names_module_and_row_and_keeps_the_finished_shards(gpt2, rows, tmp_path):
    def objective(model, batch):
        from lorif_hf.tasks import CausalLM

        losses = CausalLM().losses(model, batch)
        return losses * torch.where(batch["input_ids"][:, 0] == 49, float("nan"), 1.0)

    ids = rows["input_ids"][:]
    ids = [[1, *row[1:]] for row in ids]
    ids[13] = [49, *ids[13][1:]]
    dataset = Dataset.from_dict({"input_ids": ids, "labels": ids})
    with pytest.raises(
        NonFiniteGradientError, match=r"module 'transformer.h.0.attn.c_attn' .* row\(s\) 13\."
    ) as caught:
        InfluenceIndex.build(gpt2, dataset, tmp_path / "index", config=CONFIG, objective=objective)
    assert caught.value.rows == [13]
    assert len(list((tmp_path / "index" / "factors").iterdir())) == 2


def test_out_of_memory_becomes_our_own_error_and_the_build_goes_on(gpt2, rows, tmp_path, monkeypatch):
    record, seen = GradientRecorder.record, []

    def small(self, batch, batch_rows=None, taken=None):
        if batch_rows[0] >= 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        seen.append(batch_rows)
        return record(self, batch, batch_rows, taken)

    with monkeypatch.context() as patch:
        patch.setattr(GradientRecorder, "record", small)
        with pytest.raises(
            RecordingError, match="Out of memory at rows 10 to 11, 2 at once.* with a smaller batch_size to go on"
        ):
            InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG, batch_size=4)
    assert len(InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG, batch_size=2)) == 20


def test_a_gradient_too_large_for_float16_is_not_stored_as_infinity(gpt2, rows, tmp_path):
    def loud(model, batch):
        from lorif_hf.tasks import CausalLM

        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return 1e9 * CausalLM().losses(model, batch | {"labels": labels})

    with pytest.raises(RecordingError, match="is too large for float16: build with dtype='bfloat16'"):
        InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=plain_config(dtype="float16"), objective=loud)


def test_a_lora_model_is_recorded_on_its_adapter(gpt2, rows, tmp_path):
    adapter = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    model = get_peft_model(gpt2, adapter)
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config(projection_factor=1))
    names = [module.name for module in index.manifest.modules]
    assert names == [f"transformer.h.{i}.attn.c_attn.lora_{side}.default" for i in range(2) for side in "AB"]
    assert index.manifest.model["adapter"]["default"]["r"] == 4
    assert index.attribute(model, rows.select([4]), top_k=3).scores.shape == (1, 3)


def test_layers_without_a_gradient_are_not_tracked(gpt2, rows, tmp_path):
    """B of a fresh adapter is zero, so that nothing of the loss depends on A."""
    model = get_peft_model(gpt2, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config(projection_factor=1))
    assert [module.name.rsplit(".", 2)[1] for module in index.manifest.modules] == ["lora_B"] * 2
    assert {u.reason for u in index.coverage.untracked} == {"its gradient is zero in every row"}
    assert index.coverage.share == 0.75  # 4 x 36 numbers of each B, 12 x 4 of each A
    loaded = InfluenceIndex.from_pretrained(tmp_path / "index")
    assert loaded.coverage == index.coverage
    assert loaded.attribute(model, rows.select([4]), top_k=3).scores.shape == (1, 3)
    loaded.verify()


def test_one_row_one_module(gpt2, tmp_path):
    dataset = Dataset.from_dict({"input_ids": [[1, 2]]})
    config = plain_config(target_modules=r"transformer\.h\.1\.mlp\.c_fc")
    index = InfluenceIndex.build(gpt2, dataset, tmp_path / "index", config=config)
    assert index.attribute(gpt2, {"input_ids": [1, 2]}).indices.tolist() == [[0]]


def test_shards_hold_one_tensor_per_module_and_side(gpt2, rows, tmp_path):
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    file = TensorFile(index.path, index.manifest.shards[-1])
    shapes = {name: span.shape for name, span in file.spans.items()}
    expected = {}
    for module in index.manifest.modules:
        expected[f"{module.name}.u"] = (2, 1, module.d1)  # each vector is one run of bytes
        expected[f"{module.name}.v"] = (2, 1, module.d2)
    assert shapes == expected


def test_no_path_of_this_machine_enters_the_index(gpt2, rows, tmp_path):
    gpt2.config._name_or_path = str(tmp_path / "my-model")
    index = InfluenceIndex.build(gpt2, rows, tmp_path / "index", config=CONFIG)
    text = (index.path / "influence_config.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["model"]["name"] == "my-model"

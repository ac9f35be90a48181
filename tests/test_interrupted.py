"""Builds that are stopped: by Ctrl-C in any phase, by a full disk, by too little memory. All can go on."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from digests import digests
from safetensors import SafetensorError
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import ConfigError, DiskFullError
from lorif_hf.storage import files


CONFIGS = {
    "low-rank": plain_config(projection_factor=2, shard_size=6),
    "whitened": InfluenceConfig(factor_rank=2, shard_size=6),
}

# Sends itself Ctrl-C when a function is called for the n-th time.
BUILD = """
import importlib, os, signal, sys, time
sys.path.insert(0, {support!r})
from tiny import make_gpt2, make_rows
from lorif_hf import InfluenceConfig, InfluenceIndex
module = importlib.import_module({module!r})
owner = getattr(module, {owner!r}) if {owner!r} else module
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without one
whole, calls = getattr(owner, {function!r}), []
def stopped(*args, **kwargs):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
    return whole(*args, **kwargs)
setattr(owner, {function!r}, stopped)
config = InfluenceConfig.from_json({config!r})
InfluenceIndex.build(make_gpt2(), make_rows(20), sys.argv[1], config=config, batch_size=2)
"""

PHASES = {
    "estimating second moments": ("whitened", "lorif_hf.recording.recorder", "GradientRecorder", "record", 3),
    "recording": ("whitened", "lorif_hf.recording.recorder", "GradientRecorder", "record", 16),
    "recording, low-rank": ("low-rank", "lorif_hf.recording.recorder", "GradientRecorder", "record", 6),
    "writing a shard": ("low-rank", "lorif_hf.building.builder", "", "write_shard", 2),
    "fitting": ("low-rank", "lorif_hf.curvature.low_rank", "", "fit", 4),
    "writing the examples": ("low-rank", "lorif_hf.building.example_tables", "", "write_examples", 2),
    "the manifest": ("whitened", "lorif_hf.building.builder", "", "Manifest", 1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_leaves_an_index_that_resumes(tmp_path, phase):
    name, module, owner, function, call = PHASES[phase]
    config = CONFIGS[name]
    script = BUILD.format(
        support=os.path.join(os.path.dirname(__file__), "support"),
        module=module,
        owner=owner,
        function=function,
        call=call,
        config=config.to_json(),
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "stopped")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGINT and "KeyboardInterrupt" in ended.stderr
    assert not (tmp_path / "stopped" / "influence_config.json").exists()
    InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "stopped", config=config, batch_size=2)
    InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "whole", config=config, batch_size=2)
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_full_disk_keeps_the_finished_shards_and_the_build_goes_on(tmp_path, monkeypatch, name):
    """Room comes back after the third factor file did not fit. safetensors tells it in its own way."""
    save, written = files.save_file, []

    def full(tensors, path, metadata):
        if "factors-00003" in str(path):
            path.write_bytes(b"half")
            raise SafetensorError(f"Error while serializing: No space left on device (os error {errno.ENOSPC})")
        written.append(path)
        return save(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full)
        with pytest.raises(DiskFullError, match=r"disk is full: .*factors-00003.* make room and call again to go on"):
            InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "index", config=CONFIGS[name], batch_size=2)
    left = sorted(path.name for path in (tmp_path / "index" / "factors").iterdir())
    assert left == ["factors-00001.safetensors", "factors-00002.safetensors"]
    InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "index", config=CONFIGS[name], batch_size=2)
    InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "whole", config=CONFIGS[name], batch_size=2)
    assert digests(tmp_path / "index") == digests(tmp_path / "whole")


RACING = """
import sys
sys.path.insert(0, {support!r})
from tiny import make_gpt2, make_rows, plain_config
from lorif_hf import InfluenceIndex
from lorif_hf.errors import BuildFolderError
told = 0
for number in range(4):
    while True:
        try:
            config = plain_config(projection_factor=2, shard_size=6)
            index = InfluenceIndex.build(make_gpt2(), make_rows(12), f"{{sys.argv[1]}}/{{number}}", config=config)
            break
        except BuildFolderError as error:
            assert "Another process" in str(error), error
            told += 1
    assert len(index) == 12
    index.verify()
print(told)
"""


def test_processes_that_build_the_same_index_at_once_are_told_or_find_it(tmp_path):
    script = RACING.format(support=os.path.join(os.path.dirname(__file__), "support"))
    command = [sys.executable, "-c", script, str(tmp_path)]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in racing]
    assert [code for *_, code in ended] == [0, 0], [error for _, error, _ in ended]
    InfluenceIndex.build(make_gpt2(), make_rows(12), tmp_path / "alone", config=CONFIGS["low-rank"])
    for number in range(4):
        assert digests(tmp_path / str(number)) == digests(tmp_path / "alone")


class Unsaved:
    """A tokenizer whose saving fails at the end of the pass."""

    def save_pretrained(self, folder):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_when_the_tokenizer_is_saved_keeps_the_pass(tmp_path, tokenizer):
    arguments = {"config": CONFIGS["low-rank"], "batch_size": 2}
    with pytest.raises(DiskFullError, match="tokenizer could not be written.* make room and call again"):
        InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "index", processing_class=Unsaved(), **arguments)
    index = InfluenceIndex.build(
        make_gpt2(), make_rows(20), tmp_path / "index", processing_class=tokenizer, **arguments
    )
    InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "whole", processing_class=tokenizer, **arguments)
    assert digests(tmp_path / "index") == digests(tmp_path / "whole") and index.manifest.tokenizer


def test_too_little_memory_for_the_curvature_says_the_least_that_works(tmp_path):
    arguments = {"config": CONFIGS["low-rank"], "batch_size": 2}
    with pytest.raises(ConfigError, match=r"max_memory=1000 is too small .*: the least that works is \d+ bytes"):
        InfluenceIndex.build(make_gpt2(), make_rows(20), tmp_path / "index", max_memory="1kB", **arguments)
    assert not (tmp_path / "index").exists()  # before anything is recorded

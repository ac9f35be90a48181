"""Peak memory of a build and of a query: a matter of batch, shard and layers, not of the number of rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory"),
]

# Pages mapped from files are not counted: the system takes them back when it needs them.
SCRIPT = """
import os, sys, threading, time
sys.path.insert(0, {support!r})
from pathlib import Path
from tiny import make_gpt2, make_rows
from lorif_hf import InfluenceConfig, InfluenceIndex

def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def grown(work):
    before, peak, done = held(), [0], threading.Event()
    def watch():
        while not done.wait(0.001):
            peak[0] = max(peak[0], held())
    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return peak[0] - before

model, one = make_gpt2(width=48), make_rows(1)
rows = one.select([0] * {count})
config = InfluenceConfig(factor_rank=48, bits=16, dtype="float32", shard_size=50, whitening_samples=10)
InfluenceIndex.build(model, one, sys.argv[1] + "/warm", config=config)
built = grown(lambda: InfluenceIndex.build(model, rows, sys.argv[1] + "/index", config=config, batch_size=10))
index = InfluenceIndex.from_pretrained(sys.argv[1] + "/index")
index.attribute(model, one.select([0]), top_k=3)
asked = grown(lambda: InfluenceIndex.from_pretrained(sys.argv[1] + "/index").attribute(model, one, top_k=10))
print(built, asked, index.manifest.shards[0].bytes)
"""


def measured(folder: Path, count: int) -> list[int]:
    """Bytes that a build and a query of `count` rows take at their peaks, and bytes of a shard."""
    folder.mkdir()
    script = SCRIPT.format(support=str(Path(__file__).parent / "support"), count=count)
    # What is held counts, not what the allocator keeps of freed buffers: it gives each of them back at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script, str(folder)], check=True, capture_output=True, text=True, env=environment
    )
    return [int(number) for number in ran.stdout.split()]


def test_peak_memory_does_not_grow_with_the_rows(tmp_path):
    few, many = (measured(tmp_path / str(count), count) for count in (200, 1600))
    shard = few[2]
    print(
        f"a shard has {shard / 1e6:.1f} MB; build {few[0] / shard:.2f} and {many[0] / shard:.2f} shards, query "
        f"{few[1] / shard:.2f} and {many[1] / shard:.2f}, at 4 and 32 shards"
    )
    assert shard > 8e6
    # A shard in the making, one being written, and the second's copy of what is not yet on the disk.
    assert many[0] < 4 * shard and many[0] < few[0] + 0.5 * shard
    assert many[1] < shard and many[1] < few[1] + 0.5 * shard

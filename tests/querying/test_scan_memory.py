"""What a query holds in memory depends on shard, modules and queries, not on the number of examples."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


MEASURE = """
import sys, threading
sys.path.insert(0, {support!r})
from dataclasses import replace
from pathlib import Path
import torch
from factor_shards import shard_entry
from tiny import plain_config
from lorif_hf.algebra.scoring import QueryGroup
from lorif_hf.codecs import codec_of
from lorif_hf.querying.scan import Scan, best_scores
from lorif_hf.storage.layout import ModuleEntry
from lorif_hf.storage.shards import ShardReader, write_shard
from lorif_hf.storage.store import LocalStore

ROWS, shards = 4000, int(sys.argv[1])
folder, config = Path(sys.argv[2]), plain_config()
entries = [ModuleEntry(f"m.{{i}}", "linear", 256, 256, 256, 256, "") for i in range(4)]
parts = {{e.name: {{side: torch.randn(ROWS, 1, 256).bfloat16() for side in "uv"}} for e in entries}}
write_shard(folder / "shard.safetensors", parts)
del parts
first = shard_entry(folder, "shard.safetensors", 0, ROWS)
many = [replace(first, start=ROWS * i) for i in range(shards)]  # one file, many times

def kibibytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

def search(table):
    codec = codec_of(config)
    reader = ShardReader(LocalStore(folder), table, None, codec.layout)
    groups = {{e.name: [QueryGroup(torch.arange(4), torch.randn(4, 256, 256))] for e in entries}}
    best_scores(Scan(4, groups, reader, entries, codec), 10)

search(many[:2])
names = ("RssAnon", "RssFile")
before, peaks, done = {{n: kibibytes(n) for n in names}}, dict.fromkeys(names, 0), threading.Event()

def watch():
    while not done.wait(0.001):
        for name in names:
            peaks[name] = max(peaks[name], kibibytes(name) - before[name])

watcher = threading.Thread(target=watch)
watcher.start()
search(many)
done.set()
watcher.join()
print(first.bytes, 1024 * peaks["RssAnon"], 1024 * peaks["RssFile"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_the_peak_of_a_query_is_the_same_at_two_numbers_of_examples(tmp_path):
    """4 and 40 shards of 16 MB: neither its own memory nor the mapped pages grow with them."""
    script = MEASURE.format(support=str(Path(__file__).parents[1] / "support"))
    # What is held counts, not what the allocator keeps of freed buffers: it gives each of them back at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "2"}
    found = {}
    for shards in (4, 40):
        command = [sys.executable, "-c", script, str(shards), str(tmp_path)]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
        assert ran.returncode == 0, ran.stderr[-2000:]
        found[shards] = [int(number) for number in ran.stdout.split()]
    shard = found[4][0]
    print(json.dumps(found))
    for number, what in ((1, "its own"), (2, "mapped")):
        few, many = found[4][number], found[40][number]
        assert many - few < 0.25 * shard, f"{what}: {few} bytes with 4 shards, {many} with 40"
    assert found[40][1] < 1.5 * shard and found[40][2] < 2.5 * shard

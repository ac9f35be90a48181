"""What an index of a wide model and of millions of rows takes, from a model that a simulation checks.

    python -m benchmarks.scaling               # a million rows on disk (0.8 GB while it runs); some minutes
    python -m benchmarks.scaling --tables      # only the tables, with the constants that were measured last
    python -m benchmarks.scaling --docs        # and puts them into docs/scaling.md

Shapes are those of real models on the meta device. What a build takes is what `lorif_hf.estimating` says, which
`python -m benchmarks.estimate` holds against small builds. Three constants are measured on 100,000 rows of random
factors of some of GPT-2's layers: bytes written a second (hashed and synced), bytes read a second from the page cache,
and operations a second of scoring. They predict what ten times as many rows take, and that is measured too. Seconds of
reading and scoring are those of the process's own threads (CPU time over the threads), so that others on the machine
matter less; those of writing are on the wall.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.filesize import decimal
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lorif_hf import InfluenceConfig
from lorif_hf.algebra.thin_queries import compress, widest_rank
from lorif_hf.codecs import codec_of
from lorif_hf.curvature.encoding import module_entry
from lorif_hf.estimating.costs import estimates
from lorif_hf.layers.selection import Selection
from lorif_hf.querying.scan import Groups
from lorif_hf.storage.files import file_entry, header_sha256
from lorif_hf.storage.layout import FactorShard, ModuleEntry, factor_file
from lorif_hf.storage.shards import write_shard

from .machine import load, machine
from .quality import RESULTS
from .query import opened, read_and_sum, search


DOCS = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- benchmarks.scaling: begin -->", "<!-- benchmarks.scaling: end -->"
ROWS, SHARD = (100_000, 300_000, 1_000_000), 10_000
QUERIES, TOKENS = (1, 16), 64
MILLION, LENGTH = 1_000_000, 512  # rows, and tokens of each, of the tables
LONG = 5.0  # seconds above which one run is enough
MANY = 300_000  # rows above which 16 queries are left out: they say nothing more, in minutes
SIMULATED = InfluenceConfig.smallest()  # c = 1, 1 bit
BLOCKS = 1  # of GPT-2, whose layers are simulated: four layers each


def gpt2() -> nn.Module:
    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config())


def llama(hidden: int, intermediate: int, layers: int, key_value_heads: int, lora: bool = False) -> nn.Module:
    """A Llama's shape; with `lora`, adapters of rank 16 on every linear layer are what is trained."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=key_value_heads,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        if not lora:
            return model
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))


SHAPES = {
    "GPT-2 124M": gpt2,
    "Llama 7B": lambda: llama(4096, 11_008, 32, 32),
    "Llama 7B, LoRA": lambda: llama(4096, 11_008, 32, 32, lora=True),
    "Llama 70B": lambda: llama(8192, 28_672, 80, 8),
    "Llama 70B, LoRA": lambda: llama(8192, 28_672, 80, 8, lora=True),
}


@dataclass(frozen=True)
class Constants:
    """What this machine does in a second.

    Args:
        written, read (`float`): bytes of factors that are written, hashed and synced; that are read from the page
            cache and summed.
        scored (`dict[str, float]`): operations of scoring, by the number of queries.
    """

    written: float
    read: float
    scored: dict[str, float]


def entries_of(model: nn.Module, config: InfluenceConfig) -> list[ModuleEntry]:
    """The tracked layers, with the shapes that are stored of them."""
    return [module_entry(tracked, config) for tracked in Selection(model, config.target_modules, None).modules]


def row_bytes(entries: Sequence[ModuleEntry], config: InfluenceConfig) -> int:
    codec = codec_of(config)
    return sum(codec.bytes_per_example(entry.d1, entry.d2) for entry in entries)


def operations(entries: Sequence[ModuleEntry], config: InfluenceConfig, queries: int, tokens: int = TOKENS) -> float:
    """Of scoring one row against so many queries of so many tokens: each of the c pairs meets a query that is held
    whole, or as two thin factors of its tokens' rank."""
    pairs = codec_of(config).pairs or 1
    thin = [min(entry.d1 * entry.d2, tokens * (entry.d1 + entry.d2)) for entry in entries]
    return 2.0 * pairs * queries * sum(thin)


def write_rows(folder: Path, config: InfluenceConfig, entries: Sequence[ModuleEntry], count: int) -> float:
    """Random factors of `count` rows: the same ones in every shard, drawn once. Returns the seconds of writing."""
    codec, shards, seconds = codec_of(config), [], 0.0
    generator = torch.Generator().manual_seed(0)
    rows = min(SHARD, count)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for entry in entries:
        parts[entry.name] = {}
        for name, (dtype, shape) in codec.layout(entry.d1, entry.d2).items():
            if dtype == torch.uint8:
                drawn = torch.randint(0, 256, (rows, *shape), dtype=dtype, generator=generator)
            else:
                drawn = torch.randn(rows, *shape, generator=generator).to(dtype)
            parts[entry.name][name] = drawn
    for start in range(0, count, rows):
        path = folder / factor_file(len(shards))
        began = time.perf_counter()
        write_shard(path, parts)
        file = file_entry(folder, path.relative_to(folder).as_posix())
        shards.append(FactorShard(file.file, file.bytes, file.sha256, start, rows, header_sha256(path)))
        seconds += time.perf_counter() - began
    (folder / "shards.json").write_text(json.dumps([asdict(shard) for shard in shards]))
    return seconds


def thin_queries(entries: Sequence[ModuleEntry], config: InfluenceConfig, queries: int, rows: int) -> Groups:
    """Random queries of `TOKENS` tokens, held as a query holds them."""
    generator, groups = torch.Generator().manual_seed(1), {}
    pairs = codec_of(config).pairs or 1
    for entry in entries:
        tokens = min(TOKENS, entry.d1, entry.d2)
        left, right = (torch.randn(queries, tokens, d, generator=generator) for d in (entry.d1, entry.d2))
        widest = widest_rank(pairs, entry.d1, entry.d2, queries, rows)
        groups[entry.name] = compress(left.mT @ right, torch.arange(queries), widest, [tokens] * queries)
    return groups


def own_seconds(work: Callable[[], Any]) -> float:
    """Seconds of this process's threads, the median of three runs; the first one's alone where it took long."""
    times = []
    for _ in range(4):
        start = time.process_time()
        work()
        times.append((time.process_time() - start) / torch.get_num_threads())
        if times[0] > LONG:
            return times[0]
    return statistics.median(times[1:])


def measured_rows(folder: Path, entries: Sequence[ModuleEntry], count: int) -> dict[str, float]:
    """Bytes on disk, and seconds of writing, reading and scoring so many rows."""
    taken = {"write": write_rows(folder, SIMULATED, entries, count)}
    reader = opened(folder, SIMULATED)
    taken["bytes"] = float(sum(shard.bytes for shard in reader.shards))
    taken["read"] = own_seconds(lambda: read_and_sum(reader))
    for queries in QUERIES if count <= MANY else QUERIES[:1]:
        groups = thin_queries(entries, SIMULATED, queries, count)
        taken[f"score, Q = {queries}"] = own_seconds(lambda: search(groups, queries, reader, SIMULATED, entries))  # noqa: B023
    return taken


def constants_of(taken: dict[str, float], entries: Sequence[ModuleEntry], count: int) -> Constants:
    scored = {
        str(queries): count * operations(entries, SIMULATED, queries) / taken[f"score, Q = {queries}"]
        for queries in QUERIES
    }
    return Constants(taken["bytes"] / taken["write"], taken["bytes"] / taken["read"], scored)


def predicted_rows(constants: Constants, entries: Sequence[ModuleEntry], config: InfluenceConfig, count: int) -> Any:
    """The same figures as `measured_rows`, from the constants."""
    size = float(count * row_bytes(entries, config))
    taken = {"write": size / constants.written, "bytes": size, "read": size / constants.read}
    for queries in QUERIES:
        work = count * operations(entries, config, queries)
        taken[f"score, Q = {queries}"] = work / constants.scored[str(queries)]
    return taken


def simulate(folder: Path, rows: Sequence[int], blocks: int) -> dict[str, Any]:
    """Measure the constants on the fewest rows, and how well they predict more."""
    entries = entries_of(gpt2(), SIMULATED)[: 4 * blocks]
    saved: dict[str, Any] = {"layers": len(entries), "config": SIMULATED.to_dict(), "checks": []}
    constants: Constants | None = None
    for count in rows:
        place = folder / str(count)
        taken = measured_rows(place, entries, count)
        shutil.rmtree(place)
        if constants is None:
            constants = constants_of(taken, entries, count)
            saved["constants"] = asdict(constants)
        predicted = predicted_rows(constants, entries, SIMULATED, count)
        saved["checks"].append({"rows": count, "measured": taken, "predicted": predicted})
        Console().print(f"{count:,} rows: measured {_short(taken)}; predicted {_short(predicted)}")
    return saved


def _short(taken: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.3g}" for name, value in taken.items())


def check_rows(saved: dict[str, Any]) -> list[list[str]]:
    """What was predicted and what was measured, beside each other."""
    rows = [["rows", "what", "predicted", "measured", "measured / predicted"]]
    for check in saved["checks"][1:]:
        for name, taken in check["measured"].items():
            predicted = check["predicted"][name]
            sizes = predicted, taken
            shown = [decimal(int(size)) if name == "bytes" else f"{size:,.3g} s" for size in sizes]
            rows.append([f"{check['rows']:,}", name, *shown, f"{taken / predicted:.2f}"])
    return rows


def tables(saved: dict[str, Any], flops: float) -> str:
    """The tables of docs/scaling.md."""
    constants, config = Constants(**saved["constants"]), InfluenceConfig()
    held = [["model", "layers", "bytes a row", "fixed part", "memory to fit", "shards held", "disk, 1M rows", "10M"]]
    built = [["model", "first pass, 1,000 rows", "recording 1M rows", "10M rows"]]
    asked = [["model", "reading 1M rows", *(f"scoring, Q = {queries}" for queries in QUERIES)]]
    for name, shape in SHAPES.items():
        model = shape()
        entries = entries_of(model, config)
        cost, larger = (estimates(model, n, LENGTH, {name: config}, flops)[name] for n in (MILLION, 10 * MILLION))
        assert cost.sizes is not None, cost.problem
        sizes = cost.fixed_bytes, cost.fit_memory, cost.sizes.shards, cost.index_bytes, larger.index_bytes
        held.append([name, f"{len(entries)}", f"{cost.bytes_per_example:,}", *map(decimal, sizes)])
        phases = cost.seconds.first_pass, cost.seconds.recording, larger.seconds.recording
        built.append([name, *map(duration, phases)])
        taken = predicted_rows(constants, entries, config, MILLION)
        asked.append([name, *(duration(taken[what]) for what in ("read", *(f"score, Q = {q}" for q in QUERIES)))])
    machine_of = f"The check: {saved['machine']}, {saved['threads']} thread(s), load {saved['load']}."
    return "\n\n".join([machine_of, *map(markdown, (check_rows(saved), held, built, asked))])


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.2g} s"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "| --- |" + " ---: |" * (len(rows[0]) - 1), *body])


def main(
    max_rows: Annotated[int, typer.Option(min=ROWS[0], help="Of random factors on disk, at most.")] = ROWS[-1],
    blocks: Annotated[int, typer.Option(min=1, max=12, help="Of GPT-2, whose layers are simulated.")] = BLOCKS,
    only_tables: Annotated[bool, typer.Option("--tables", help="With the constants measured last.")] = False,
    docs: Annotated[bool, typer.Option("--docs", help="The same, into docs/scaling.md.")] = False,
    flops: Annotated[float, typer.Option(help="Sustained operations a second of the build's device.")] = 100e12,
    folder: Annotated[Path | None, typer.Option(help="Where the factors are written, and deleted again.")] = None,
    results: Annotated[Path, typer.Option(help="The JSON file of the constants.")] = RESULTS / "scaling.json",
) -> None:
    """Measure, check and print."""
    disable_progress_bars("lorif_hf")
    if not (only_tables or docs):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            saved = simulate(Path(name), [count for count in ROWS if count <= max_rows], blocks)
        saved |= {"machine": machine(), "threads": torch.get_num_threads(), "load": load()}
        results.write_text(json.dumps(saved, indent=2) + "\n")
    saved = json.loads(results.read_text())
    made = tables(saved, flops)
    print(made)
    if docs:
        before, _, rest = DOCS.read_text().partition(BEGIN)
        DOCS.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    typer.run(main)

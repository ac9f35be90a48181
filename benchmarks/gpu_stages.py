"""The stages of `python -m benchmarks.gpu` that are ours alone.

Correctness: also the CPU against itself rounds otherwise in other batches. Scores must agree to 1e-3 of the largest.
At one bit a number a sign at a tie falls either way by rounding, and with it what follows: there the scores of two
builds must correlate, and those of one index, queried with the model on either side, agree.

Recording: a plain pass computes the gradients of what is trained, as every training step does, and collates the same
rows in the same batches; seconds are those of a batch. Queries are of 64 tokens, on the index of the recorded rows,
repeated until it holds enough of them for scoring to count.
"""

import copy
import itertools
import os
import shutil
import statistics
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.errors import ModelMismatchError
from lorif_hf.storage.examples import write_examples
from lorif_hf.storage.files import file_entry, header_sha256, write_tensors
from lorif_hf.storage.layout import MANIFEST, FactorShard, Shard, example_file, factor_file, read_manifest

from .machine import peak_memory
from .recording import CONFIGS, make


TOLERANCE = 1e-3  # of the largest score
CORRELATION = 0.99  # of two builds' scores at one bit, for each query; on a CPU, other batches alone leave 0.9998
REPEATS, K, COMPARED_QUERIES, TIMED_QUERIES = 5, 10, 16, (1, 64, 512)
QUERY_TOKENS, QUERY_BATCH = 64, 32  # a prompt and its answer
QUERY_SHARE = 0.08  # of a stage's time, for the repeats of one query
EXAMPLES, TINY_EXAMPLES = 16_384, 128  # of the index that is queried

Case = namedtuple("Case", "width layers vocabulary length batch batches")  # what `recording.make` takes
COMPARED, TIMED = Case(256, 4, 2048, 64, 8, 8), Case(768, 12, 50257, 512, 8, 8)
TINY_COMPARED, TINY_TIMED = Case(32, 2, 64, 12, 4, 3), Case(32, 2, 64, 16, 2, 8)
LLAMA, TINY_LLAMA = Case(2048, 16, 128_256, 512, 8, 8), Case(32, 2, 64, 16, 2, 8)
LORA_RANK = 16


@dataclass(frozen=True)
class Setting:
    """Where and for how long a stage runs.

    Args:
        device (`torch.device`): what is compared with the CPU, and timed.
        tiny (`bool`): whether the models are tiny.
        seconds (`float`): after which it is stopped.
        venvs (`Path`): of the other systems.
    """

    device: torch.device
    tiny: bool
    seconds: float
    venvs: Path


class Rows(ABC):
    """Takes the rows of the report as they come."""

    @abstractmethod
    def add(self, part: str, row: dict[str, Any]) -> None:
        """Take in a row of a part of the report."""


def check(rows: Rows, config: str, what: str, passed: bool, **figures: Any) -> None:
    rows.add("correctness", {"check": "pass" if passed else "FAIL", "config": config, "what": what, **figures})


def compare(rows: Rows, config: str, what: str, got: Tensor, expected: Tensor, coarse: bool = False) -> None:
    """Check scores (Q, n) against the expected ones; of `coarse` ones the correlation alone. NaN passes nothing."""
    got, expected = got.double().cpu(), expected.double().cpu()
    difference = float((got - expected).abs().max() / expected.abs().max())
    correlation = min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(got, expected, strict=True))
    passed = correlation >= CORRELATION if coarse else difference <= TOLERANCE
    limit = f"correlation >= {CORRELATION}" if coarse else f"difference <= {TOLERANCE:g}"
    check(rows, config, what, passed, difference=difference, correlation=correlation, limit=limit)


@contextmanager
def to_the_end(rows: Rows, part: str, row: dict[str, Any]) -> Iterator[None]:
    """Note what raises as a row with its error, and let the others have their turn: a GPU is seldom at hand."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        rows.add(part, {**row, "error": f"{type(error).__name__}: {error}"[:600]})


def random_rows(case: Case, count: int, shortest: int, longest: int, seed: int) -> Dataset:
    """Rows of random tokens; those of unlike lengths are padded in their batches."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    rows = [torch.randint(1, case.vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": rows})


def correctness(rows: Rows, setting: Setting) -> None:
    """Build and query on both sides, and compare."""
    case, device = TINY_COMPARED if setting.tiny else COMPARED, setting.device
    model = make(*case)[0].cpu()
    twin = copy.deepcopy(model).to(device)
    dataset = random_rows(case, case.batch * case.batches, case.length // 4, case.length, seed=1)
    queries = random_rows(case, COMPARED_QUERIES, case.length // 4, case.length, seed=2)
    configs = {
        **CONFIGS,
        "whitened, c = 3, float32": lambda: InfluenceConfig(bits=16, dtype="float32"),
        "grad_dot()": lambda: InfluenceConfig.grad_dot(projection_factor=1, dtype="float32"),
    }
    batch, other = case.batch, case.batch - 1
    for name, config in configs.items():
        failed = {"check": "FAIL", "config": name, "what": "builds and queries"}
        with to_the_end(rows, "correctness", failed), tempfile.TemporaryDirectory() as folder:
            here = InfluenceIndex.build(model, dataset, Path(folder) / "cpu", config=config(), batch_size=batch)
            there = InfluenceIndex.build(twin, dataset, Path(folder) / "device", config=config(), batch_size=other)
            expected = here.scores(model, queries, batch_size=batch)
            strict = recognised(rows, name, here, twin, queries)
            crossed = here.scores(twin, queries, batch_size=other, strict=strict)
            compare(rows, name, "one index, queried with the model on the device", crossed, expected)
            options = {"top_k": K, "batch_size": other, "strict": strict}
            best = here.attribute(twin, queries, **options).scores
            compare(rows, name, f"its best {K}", best, expected.topk(K).values)
            built = there.scores(twin, queries, batch_size=other)
            compare(rows, name, "built and queried on the device", built, expected, coarse=config().bits == 1)
            influence = there.self_influence().unsqueeze(0), here.self_influence().unsqueeze(0)
            compare(rows, name, "self-influence, built on the device", *influence)
        failed["what"] = "scores on the device"
        with to_the_end(rows, "correctness", failed), tempfile.TemporaryDirectory() as folder:
            here = InfluenceIndex.build(model, dataset, Path(folder) / "cpu", config=config(), batch_size=batch)
            expected = here.scores(twin, queries, strict=False).topk(K).values
            best = here.attribute(twin, queries, top_k=K, strict=False, device=device.type).scores
            compare(rows, name, f"the best {K}, scored on the device", best, expected)


def recognised(rows: Rows, config: str, index: InfluenceIndex, model: Any, queries: Dataset) -> bool:
    """Check that an index takes a model for its own on the other side too: the weights are the same."""
    try:
        index.attribute(model, queries.select([0]), top_k=1)
        passed = True
    except ModelMismatchError:  # the figures are still wanted, without the check
        passed = False
    check(rows, config, "the model is recognised on the device", passed)
    return passed


def synchronize(device: torch.device) -> None:
    """Wait for what the device was given to do; a clock that is read earlier tells when it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


@contextmanager
def noted_peak(row: dict[str, Any], name: str, device: torch.device) -> Iterator[None]:
    """Note the most memory that the device held meanwhile, in GiB (on the CPU: the process, so far)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    finally:
        row[name] = peak_memory() / 2**30


def plain_seconds(model: Any, dataset: Dataset, batch: int, device: torch.device) -> float:
    """A batch's forward and backward pass with the gradients of all that is trained: the median, after a first."""

    def step(first: int) -> None:
        columns = dataset[first : first + batch]
        model(**{name: torch.tensor(column).to(device) for name, column in columns.items()}).loss.backward()
        model.zero_grad()

    model.train()
    firsts = [number * batch % len(dataset) for number in range(REPEATS + 1)]
    seconds = statistics.median([seconds_of(lambda: step(first), device) for first in firsts][1:])  # noqa: B023
    model.zero_grad(set_to_none=True)
    return seconds


def build(row: dict[str, Any], model: Any, dataset: Dataset, case: Case, device: Any, **options: Any) -> Any:
    """Build an index, and note how long a batch took in each of its passes over the rows.

    The passes are told apart by when the model is called, which is once a batch; so nothing of the build is taken to
    pieces. Each pass's first batch warms up, and its last has no successor in the same pass.
    """
    starts: list[float] = []

    def note(*_: Any) -> None:
        synchronize(device)
        starts.append(time.perf_counter())

    called = model.get_base_model() if hasattr(model, "get_base_model") else model
    handle = called.register_forward_pre_hook(note)
    start = time.perf_counter()
    try:
        index = InfluenceIndex.build(model, dataset, batch_size=case.batch, check=False, **options)
        row["build_seconds"] = time.perf_counter() - start
    finally:
        handle.remove()
        if starts and len(starts) % case.batches == 0:  # else a batch went through twice
            *before, last = (starts[first : first + case.batches] for first in range(0, len(starts), case.batches))
            row["recording_seconds"] = _between(last)
            row["ratio_to_plain"] = row["recording_seconds"] / row["plain_seconds"]
            row["passes_before"] = len(before)
            if before:
                row["moments_seconds"] = statistics.median(_between(moments) for moments in before)
                row["roots_seconds"] = last[0] - before[-1][-1] - row["moments_seconds"]
    return index


def _between(starts: list[float]) -> float:
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(starts[1:]))


def gpt2(rows: Rows, setting: Setting) -> None:
    """GPT-2 124M at 512 tokens: the default and the published config."""
    case = TINY_TIMED if setting.tiny else TIMED
    model, dataset = make(*case)
    for name, config in CONFIGS.items():
        timing(rows, setting, case, f"GPT-2 124M, {name}", model.to(setting.device), dataset, config())


def llama(rows: Rows, setting: Setting) -> None:
    """A Llama of 1.2B parameters in bfloat16, LoRA adapters on every linear layer; these alone are trained."""
    case = TINY_LLAMA if setting.tiny else LLAMA
    set_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.width,
        intermediate_size=4 * case.width,
        num_hidden_layers=case.layers,
        num_attention_heads=max(4, case.width // 64),
        num_key_value_heads=max(2, case.width // 256),
        max_position_embeddings=case.length,
        tie_word_embeddings=True,
    )
    with setting.device:  # a billion numbers are drawn there
        base = LlamaForCausalLM(config).to(torch.bfloat16)
        lora = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, lora)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:  # as after a training: at zero, half of the gradients are zero
            torch.nn.init.normal_(parameter, std=0.02)
    tokens = random_rows(case, case.batch * case.batches, case.length, case.length, seed=1)["input_ids"]
    dataset = Dataset.from_dict({"input_ids": tokens, "labels": tokens})
    timing(rows, setting, case, "Llama 1B, LoRA, default", model.to(setting.device), dataset, InfluenceConfig())


def timing(
    rows: Rows, setting: Setting, case: Case, name: str, model: Any, dataset: Dataset, config: InfluenceConfig
) -> None:
    """Recording against plain passes, and queries on what was recorded."""
    row: dict[str, Any] = {"model": name, **case._asdict()}
    device = setting.device
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        with to_the_end(rows, "recording", row):
            with noted_peak(row, "plain_peak_gib", device):
                row["plain_seconds"] = plain_seconds(model, dataset, case.batch, device)
            with noted_peak(row, "build_peak_gib", device):
                build(row, model, dataset, case, device, path=path, config=config)
            rows.add("recording", row)
        if "build_seconds" not in row:
            return
        repeat_rows(path, TINY_EXAMPLES if setting.tiny else EXAMPLES)
        index = InfluenceIndex.from_pretrained(path)
        query_rows(rows, setting, case, name, index, model)


def repeat_rows(path: Path, count: int) -> None:
    """Make an index of `count` rows of one of a single shard, by repeating them: random gradients of so many rows
    would take longer to record than there is time."""
    manifest = read_manifest(path)
    rows = manifest.num_examples
    copies = max(1, count // rows)
    (shard,) = manifest.shards
    tensors = load_file(path / shard.file)
    repeated = {name: tensor.repeat(copies, *[1] * (tensor.dim() - 1)) for name, tensor in tensors.items()}
    shutil.rmtree(path / "factors")
    shutil.rmtree(path / "data")
    write_tensors(path / factor_file(0), repeated)
    total = rows * copies
    columns = {"row": range(total), "example_id": [None] * total, "text": [None] * total}
    columns |= {"num_tokens": [0] * total, "loss": [0.0] * total, "self_influence": [0.0] * total}
    write_examples(path / example_file(0), columns)
    entry, table = file_entry(path, factor_file(0)), file_entry(path, example_file(0))
    factors = FactorShard(entry.file, entry.bytes, entry.sha256, 0, total, header_sha256(path / entry.file))
    examples = Shard(table.file, table.bytes, table.sha256, 0, total)
    grown = replace(manifest, num_examples=total, shards=[factors], examples=[examples])
    temporary = path / "grown"
    temporary.write_text(grown.to_json())
    os.replace(temporary, path / MANIFEST)


def query_rows(rows: Rows, setting: Setting, case: Case, name: str, index: InfluenceIndex, model: Any) -> None:
    """Seconds of a search for the best rows, scored on the host and on the device. The first search of a process,
    which draws and reads what later ones have, stands apart. What would take too long is not begun."""
    most, length = QUERY_SHARE * setting.seconds, min(QUERY_TOKENS, case.length)
    places: dict[str, dict[str, Any]] = {"the host": {}, "the device": {"device": setting.device.type}}
    latest = dict.fromkeys(places, 0.0)
    for previous, count in zip((1, *TIMED_QUERIES), TIMED_QUERIES, strict=False):
        queries = random_rows(case, count, length, length, seed=3)
        for place, options in places.items():
            row: dict[str, Any] = {"model": name, "queries": count, "tokens": length, "examples": len(index)}
            row["scored_on"] = place
            predicted = latest[place] * count / previous
            if predicted > most and not setting.tiny:
                rows.add("queries", {**row, "left_out": f"would take some {predicted:.0f} s"})
                continue
            with to_the_end(rows, "queries", row):
                times: list[float] = []
                ask = lambda: index.attribute(model, queries, top_k=K, batch_size=QUERY_BATCH, **options)  # noqa: B023, E731
                with noted_peak(row, "peak_gib", setting.device):
                    for _ in range(REPEATS + 1):
                        times.append(seconds_of(ask, setting.device))
                        if sum(times) > most:
                            break
                later = times[1:] or times
                latest[place] = statistics.median(later)
                figures = {"first_seconds": times[0], "seconds": latest[place], "repeats": len(later)}
                rows.add("queries", {**row, **figures})

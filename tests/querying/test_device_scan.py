"""Scoring on a device gives what the CPU gives: all scores, the best, ties, weights and selections."""

import re
from dataclasses import replace

import pytest
import torch
from factor_shards import shard_entry
from fake_device import DEVICE, FakeDevice, on_device, on_host
from synthetic import write, write_number
from tiny import make_gpt2, make_rows, plain_config
from transformers import GPT2Config, GPT2LMHeadModel

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.algebra.scoring import QueryGroup
from lorif_hf.algebra.thin_queries import compress
from lorif_hf.errors import IndexCorruptedError, QueryError
from lorif_hf.querying import device_scan
from lorif_hf.querying.device_scan import DeviceScan, usable_device
from lorif_hf.querying.options import QueryOptions
from lorif_hf.storage.files import write_tensors


SHAPES, SIZES = [(16, 12), (13, 20)], [150, 50, 3]
COUNT = sum(SIZES)
CONFIGS = {
    "factors": plain_config(dtype="float32"),
    "bfloat16, three pairs": plain_config(factor_rank=3),
    "one bit": InfluenceConfig(),
    "four bits": InfluenceConfig(factor_rank=2, bits=4),
    "dense": InfluenceConfig.logra(dtype="float32"),
    "weighted": plain_config(dtype="float32", output="margin"),
}
FORMS = ["whole", "thin", "mixed"]


@pytest.fixture(params=["cpu", "fake"])
def device(request):
    if request.param == "cpu":
        yield torch.device("cpu")
        return
    with FakeDevice():
        yield DEVICE


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks a shard: of 64 rows."""
    monkeypatch.setattr(device_scan, "_BLOCK_NUMBERS", 64)


def queries_of(index, count, form="whole", seed=1):
    """Groups of queries, and their dense matrices."""
    generator, groups, dense = torch.Generator().manual_seed(seed), {}, {}
    for entry in index.entries:
        left = torch.randn(count, 4, entry.d1, generator=generator)
        right = torch.randn(count, 4, entry.d2, generator=generator)
        dense[entry.name] = left.mT @ right
        kept = {"whole": 0, "thin": count, "mixed": count // 2}[form]
        ids = torch.arange(count)
        if index.config.factor_rank is None:
            kept = 0
        groups[entry.name] = [QueryGroup(ids[:kept], left[:kept], right[:kept])] if kept else []
        if kept < count:
            groups[entry.name].append(QueryGroup(ids[kept:], dense[entry.name][kept:]))
    return groups, dense


def expected_scores(index, dense):
    """(entries, Q, N), float64."""
    products = [dense[e.name].double().flatten(1) @ index.held[e.name].flatten(1).T for e in index.entries]
    return torch.stack(products) * index.weights.double()


def close(scores, expected):
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONFIGS)
def test_all_scores_are_those_of_a_dense_product(tmp_path, device, name, form):
    index = write(tmp_path, CONFIGS[name], SHAPES, SIZES)
    groups, dense = queries_of(index, 4, form)
    expected = expected_scores(index, dense)
    apart, together = torch.empty(2, 4, COUNT), torch.empty(4, COUNT)
    DeviceScan(index.scan(groups, 4), device).every(apart)
    DeviceScan(index.scan(groups, 4), device).every(together)
    close(apart, expected)
    close(together, expected.sum(dim=0))
    chosen = torch.tensor([0, 9, 149, 150, 199, 202])
    selected = torch.empty(4, len(chosen))
    DeviceScan(index.scan(groups, 4, rows=chosen), device).every(selected)
    close(selected, expected.sum(dim=0)[:, chosen])
    if index.config.weighted:
        DeviceScan(index.scan(groups, 4, weighted=False), device).every(together)
        close(together * index.weights, expected.sum(dim=0))
    alone = torch.empty(4, COUNT)
    DeviceScan(replace(index.scan(groups, 4), entries=index.entries[1:]), device).every(alone)
    close(alone, expected[1])


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_best_are_those_of_all_scores(tmp_path, device, name, largest):
    index = write(tmp_path, CONFIGS[name], SHAPES, SIZES)
    for count, k, rows in ((4, 5, None), (1, 1, None), (2, COUNT + 1, None), (3, 7, torch.arange(3, COUNT, 7))):
        groups, dense = queries_of(index, count, "mixed")
        best = DeviceScan(index.scan(groups, count, rows=rows), device).best(k, largest)
        kept = torch.arange(COUNT) if rows is None else rows
        values, columns = (
            expected_scores(index, dense).sum(dim=0)[:, kept].sort(dim=1, descending=largest, stable=True)
        )
        assert best.scores.device.type == "cpu" and torch.equal(best.indices, kept[columns[:, :k]])
        close(best.scores, values[:, :k])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("selected", [False, True])
def test_equal_scores_go_to_the_lower_rows(tmp_path, device, form, selected):
    """The same gradient everywhere: in every block, at every place in it."""
    index = write(tmp_path, plain_config(dtype="float32", factor_rank=2), [(24, 24)], SIZES)
    same = {"m.0.u": torch.randn(1, 2, 24), "m.0.v": torch.randn(1, 2, 24)}
    for number, shard in enumerate(index.reader.shards):
        write_tensors(tmp_path / shard.file, {name: part.repeat(shard.rows, 1, 1) for name, part in same.items()})
        index.reader.shards[number] = shard_entry(tmp_path, shard.file, shard.start, shard.rows)
    groups, _ = queries_of(index, 3, form)
    rows = torch.arange(5, COUNT, 3) if selected else torch.arange(COUNT)
    for largest in (True, False):
        scan = index.scan(groups, 3, rows=rows if selected else None)
        assert DeviceScan(scan, device).best(15, largest).indices.tolist() == [rows[:15].tolist()] * 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_factor_that_is_no_number_is_named_with_its_file_and_module(tmp_path, device, value):
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES, SIZES)
    shard = write_number(index, tmp_path, 1, "m.1.v", (49, 0, 3), value)
    groups, _ = queries_of(index, 4)
    message = re.escape(f"{shard.file}: the factors of 'm.1' are not all finite numbers")
    with pytest.raises(IndexCorruptedError, match=message):
        DeviceScan(index.scan(groups, 4), device).best(2)
    for shape in ((4, COUNT), (2, 4, COUNT)):
        with pytest.raises(IndexCorruptedError, match=message):
            DeviceScan(index.scan(groups, 4), device).every(torch.empty(shape))


def test_scores_beyond_float32_are_refused(tmp_path, device):
    index = write(tmp_path, plain_config(dtype="float32"), SHAPES[:1], SIZES)
    scan = index.scan({"m.0": [QueryGroup(torch.arange(2), torch.full((2, 16, 12), 3e38))]}, 2)
    with pytest.raises(IndexCorruptedError, match="of 'm.0' are not all finite|are beyond the range of float32"):
        DeviceScan(scan, device).best(2)


def test_packed_bits_cross_and_the_device_is_waited_for_once_a_shard(tmp_path):
    index = write(tmp_path, InfluenceConfig(), SHAPES, SIZES)
    groups, _ = queries_of(index, 4, "thin")
    with FakeDevice() as fake:
        scan = DeviceScan(index.scan(groups, 4), DEVICE)
        fake.forget()
        scan.best(5)
        counts, crossed = fake.crossings.counts, fake.crossings.of("to device").bytes
        shown = str(fake.crossings)
    stored = sum(shard.bytes for shard in index.reader.shards)
    assert crossed < stored, shown
    assert counts.get("wait", 0) <= len(SIZES) and counts["to host"] == 1, shown


@pytest.mark.parametrize("fits", [64, 63, 5, 1])
def test_a_device_with_little_memory_gets_smaller_blocks(tmp_path, monkeypatch, fits):
    index = write(tmp_path, InfluenceConfig(), SHAPES, SIZES)
    groups, dense = queries_of(index, 4)
    real, sizes = device_scan._products, []

    def products(group, left, right):
        sizes.append(len(left))
        if len(left) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(group, left, right)

    monkeypatch.setattr(device_scan, "_products", products)
    scores = torch.empty(4, COUNT)
    DeviceScan(index.scan(groups, 4), torch.device("cpu")).every(scores)
    close(scores, expected_scores(index, dense).sum(dim=0))
    assert sorted(set(sizes), reverse=True) == [64 >> i for i in range(7) if 64 >> i > fits or 64 >> i == sizes[-1]]
    assert sizes[-1] <= fits < 2 * sizes[-1]


def test_a_device_without_any_memory_left_says_what_to_set(tmp_path, monkeypatch):
    index = write(tmp_path, InfluenceConfig(), SHAPES, SIZES)
    groups, _ = queries_of(index, 4)

    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    message = (
        r"^Scoring 4 queries on cpu runs out of its memory, one example at a time too: ask for fewer queries at once, "
        r"for fewer layers \(modules=\), or leave device= out to score on the CPU\.$"
    )
    monkeypatch.setattr(device_scan, "_products", full)
    with pytest.raises(QueryError, match=message):
        DeviceScan(index.scan(groups, 4), torch.device("cpu")).best(3)
    monkeypatch.setattr(DeviceScan, "_placed", full)
    with pytest.raises(QueryError, match=message):
        DeviceScan(index.scan(groups, 4), torch.device("cpu"))


def test_another_error_passes(tmp_path, monkeypatch):
    index = write(tmp_path, InfluenceConfig(), SHAPES, SIZES)
    groups, _ = queries_of(index, 4)

    def broken(*given):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(device_scan, "_products", broken)
    with pytest.raises(RuntimeError, match="^no kernel image is available$"):
        DeviceScan(index.scan(groups, 4), torch.device("cpu")).best(3)


DEVICES = {
    "unknown": ("warp", "^device='warp' cannot be used here"),
    "absent": ("cuda:97", "^device='cuda:97' cannot be used here .*leave device= out to score on the CPU"),
    "without numbers": (
        "meta",
        r"^device='meta' cannot be used here \(it holds no numbers\)\. Name one that torch has",
    ),
    "a number": (0, "^device must be a device like 'cuda' or 'cuda:1', or None for the CPU, got 0"),
    "True": (True, "^device must be a device like .*, got True"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    model, rows = make_gpt2(width=48), make_rows(30)
    index = InfluenceIndex.build(
        model, rows, tmp_path_factory.mktemp("index") / "index", config=InfluenceConfig(shard_size=8)
    )
    return model, rows, index


@pytest.mark.parametrize(("device", "message"), DEVICES.values(), ids=DEVICES)
def test_a_device_that_is_not_here_is_refused_before_the_model_runs(built, monkeypatch, device, message):
    model, rows, index = built
    monkeypatch.setattr(type(model), "forward", lambda *given, **named: pytest.fail("the model ran"))
    for ask in (index.attribute, index.scores):
        with pytest.raises(QueryError, match=message):
            ask(model, rows.select([0]), device=device)


def test_the_cpu_by_name_is_the_cpu(built):
    model, rows, index = built
    assert usable_device(None) is usable_device("cpu") is usable_device(torch.device("cpu", 0)) is None
    queries = rows.select([0, 1])
    assert torch.equal(index.scores(model, queries, device="cpu"), index.scores(model, queries))


ASKED = {
    "plain": {},
    "layer by layer": {"per_module": True},
    "some layers": {"modules": ["mlp.c_fc"]},
    "token by token": {"per_token": True},
    "the mean": {"reduce": "mean"},
}


@pytest.mark.filterwarnings("ignore:The weights of the query's model")  # the fake device's have another identity
@pytest.mark.parametrize(
    ("model_on", "device"),
    [("CPU", DEVICE), ("device", DEVICE), ("device", None)],
    ids=["from the CPU", "there", "back"],
)
@pytest.mark.parametrize("options", ASKED.values(), ids=ASKED)
def test_a_query_is_scored_on_a_device_wherever_its_model_is(built, options, model_on, device):
    model, rows, index = built
    queries = rows.select([0, 1, 2])
    expected = index.scores(model, queries, **options)
    best = index.attribute(model, queries, top_k=4, **{k: v for k, v in options.items() if k != "per_module"})
    with FakeDevice():
        if model_on == "device":
            model = on_device(make_gpt2(width=48))
        scores = index.scores(model, queries, device=device, strict=False, **options)
        options = {k: v for k, v in options.items() if k != "per_module"}
        there = index.attribute(model, queries, top_k=4, device=device and str(device), strict=False, **options)
    pairs = zip(scores.values(), expected.values(), strict=True) if isinstance(scores, dict) else [(scores, expected)]
    for got, wanted in pairs:
        assert type(on_host(got)) is torch.Tensor
        torch.testing.assert_close(
            got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.nan_to_num().abs().max()), equal_nan=True
        )
    assert torch.equal(there.indices, best.indices)


@pytest.mark.filterwarnings("ignore:The weights of the query's model")
def test_queries_are_prepared_without_waiting_for_the_device_layer_by_layer(tmp_path):
    counts = {}
    for layers in (1, 3):
        config = GPT2Config(vocab_size=50, n_positions=16, n_embd=48, n_layer=layers, n_head=2)
        model, rows = GPT2LMHeadModel(config).eval(), make_rows(12)
        index = InfluenceIndex.build(model, rows, tmp_path / f"{layers}", config=InfluenceConfig())
        with FakeDevice() as fake:
            options = QueryOptions(device=DEVICE, strict=False)
            asked = index._asked(on_device(model), rows.select([0, 1]), options)
            fake.forget()
            measured = asked.whole()
            crossings = fake.crossings.of("to host", "wait")
            assert all(group.left.device == DEVICE for held in measured.preconditioned.values() for group in held)
        counts[layers] = len(crossings), str(crossings)
    assert counts[1][0] == counts[3][0], counts


def test_compressed_queries_are_those_that_were(tmp_path, device):
    index = write(tmp_path, plain_config(dtype="float32"), [(24, 24)], SIZES)
    matrices = torch.randn(3, 24, 2) @ torch.randn(3, 2, 24)
    scores = torch.empty(3, COUNT)
    DeviceScan(index.scan({"m.0": compress(matrices, torch.arange(3), 8)}, 3), device).every(scores)
    close(scores, expected_scores(index, {"m.0": matrices}).sum(dim=0))

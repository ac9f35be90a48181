"""A batch on a device: recorded and encoded there, as on the CPU, and little of it crosses, however many layers there
are. The device is a fake one: see `fake_device`."""

from dataclasses import replace

import pytest
import torch
from fake_device import DEVICE, FakeDevice, on_device, on_host
from mixtures import mixture
from recordings import build, token_batch
from shard_rows import ShardRows

from lorif_hf import InfluenceConfig
from lorif_hf.algebra import devices
from lorif_hf.algebra.matrices import LowRankMatrices, dense
from lorif_hf.codecs import codec_of
from lorif_hf.curvature import curvature_of
from lorif_hf.curvature.encoding import bytes_per_example
from lorif_hf.recording.recorder import without_gradient


WIDE = {"hidden_size": 48, "intermediate_size": 48}  # enough for a range finder
CONFIGS = {
    "default": (InfluenceConfig(), {}),
    "range finder": (InfluenceConfig(), WIDE),
    "paper": (InfluenceConfig.paper(), {}),
    "logra": (InfluenceConfig.logra(), {}),
    "best": (InfluenceConfig.best(), {}),
    "trak": (InfluenceConfig.trak(projection_dim=64), {}),
    "cosine": (InfluenceConfig.grad_cos(), {}),
    "all": (InfluenceConfig(target_modules="all"), {}),
}
BATCHES = [token_batch([5, 9, 3]), token_batch([7, 9, 4], seed=1), token_batch([9, 2, 6], seed=2)]


def model_of(kind, layers=2, options=None):
    options = {"attn_implementation": "eager", **(options or {})}
    if kind == "mixtral":
        return mixture("mixtral", num_hidden_layers=layers, vocab_size=320, **options)
    return build(kind, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": layers, **options})


def of_second_batch(kind, config, options, layers):
    """What crosses of a batch once the first has brought what stays there."""
    rows = ShardRows(model_of(kind, layers, options), config)
    rows = ShardRows(rows.model, config, rows.first_pass(BATCHES[0]))
    with FakeDevice() as fake:
        on_device(rows.model)
        rows.record(BATCHES[:2], before=fake.forget)
        return fake.crossings, bytes_per_example(config, rows.entries), len(rows.entries)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_crosses_does_not_depend_on_the_number_of_layers(name):
    config, options = CONFIGS[name]
    few, stored, layers = of_second_batch("llama", config, options, 2)
    many, _, more = of_second_batch("llama", config, options, 4)
    assert few.counts == many.counts and more > layers, f"{few}\n{many}"
    # Row by row what is stored, its squared norm and loss, and the number of its targets; and a flag of each layer.
    assert len(few.of("to host")) <= 4
    assert few.of("to host").bytes <= len(BATCHES[0]["input_ids"]) * (stored + 24) + layers, str(few)
    assert few.of("to device").bytes <= sum(tensor.nbytes for tensor in BATCHES[1].values()), str(few)


@pytest.mark.parametrize("name", ["default", "all"])
def test_of_gpt2_neither(name):
    few, many = (of_second_batch("gpt2", CONFIGS[name][0], {}, layers)[0] for layers in (2, 4))
    assert few.counts == many.counts, f"{few}\n{many}"


@pytest.mark.parametrize("name", ["default", "all"])
def test_of_a_mixture_only_how_many_tokens_come_to_each_expert_is_waited_for(name):
    """Which is how such models compute, on any device."""
    few, many = (of_second_batch("mixtral", CONFIGS[name][0], {}, layers)[0] for layers in (2, 4))
    counted = [crossings.where("recording/experts.py", "algebra/sides.py") for crossings in (few, many)]
    others = [len(crossings) - len(of) for crossings, of in zip((few, many), counted, strict=True)]
    assert others[0] == others[1], f"{few}\n{many}"
    # Two products and two sides of each layer, each a count that then crosses.
    assert [of.counts for of in counted] == [{"to host": 4 * n, "wait": 4 * n} for n in (2, 4)]
    assert counted[1].bytes == 4 * 4 * 4 * torch.int64.itemsize


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradients_are_those_of_the_cpu(kind, name):
    config, options = CONFIGS[name][0], CONFIGS[name][1] if kind == "llama" else {}
    here = ShardRows(model_of(kind, options=options), config)
    here = ShardRows(here.model, config, here.first_pass(BATCHES[0]))
    with here.recorder() as recorder:
        expected = recorder.record(BATCHES[1])
    with FakeDevice():
        on_device(here.model)
        with here.recorder() as recorder:
            recording = recorder.record(BATCHES[1])
        torch.testing.assert_close(recording.losses, expected.losses)
        for tracked, gradients in recording.gradients.items():
            there = gradients.left if isinstance(gradients, LowRankMatrices) else gradients
            assert there.device == DEVICE, tracked
            truth = dense(expected.gradients[tracked])
            assert float((on_host(dense(gradients)) - truth).norm()) < 1e-4 * float(truth.norm()), tracked


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_stored_of_the_same_gradients_is_the_same_to_the_last_bit(name):
    config, options = CONFIGS[name]
    rows = ShardRows(model_of("llama", options=options), config)
    rows = ShardRows(rows.model, config, rows.first_pass(BATCHES[0]))
    with rows.recorder() as recorder:
        recording = recorder.record(BATCHES[1])
    here, there = rows.contents(3), rows.contents(3)
    rows.put(here, 0, recording)
    with FakeDevice():
        moved = {
            name: LowRankMatrices(*map(on_device, (g.left, g.right, g.squares)))
            if isinstance(g, LowRankMatrices)
            else on_device(g)
            for name, g in recording.gradients.items()
        }
        rows.put(there, 0, replace(recording, gradients=moved))
    for entry, parts in here.parts.items():
        for part, stored in parts.items():
            assert torch.equal(stored.view(torch.uint8), there.parts[entry][part].view(torch.uint8)), (entry, part)
    assert here.active == there.active
    assert all(torch.equal(column, there.table[name]) for name, column in here.table.items())


@pytest.mark.parametrize("name", ["default", "range finder", "paper", "logra"])
def test_a_device_without_float64_stores_about_the_same(name, monkeypatch):
    """Pairs of coarse vectors may come out otherwise where two are as good, which shows in single rows."""
    config, options = CONFIGS[name]
    rows = ShardRows(model_of("llama", options=options), config)
    rows = ShardRows(rows.model, config, rows.first_pass(BATCHES[0]))
    here = rows.record(BATCHES)
    monkeypatch.setattr(devices, "_WITHOUT_FLOAT64", (DEVICE.type,))
    with FakeDevice(float64=False):
        on_device(rows.model)
        there = rows.record(BATCHES)
    codec = codec_of(config)
    for entry in rows.entries:
        expected, found = (
            dense_of(codec.factors(contents.parts[entry.name], entry.d1, entry.d2)) for contents in (here, there)
        )
        sizes = expected.flatten(1).norm(dim=1)
        distance = (found - expected).flatten(1).norm(dim=1) / torch.where(sizes > 0, sizes, 1)
        assert float(distance.median()) < 1e-2 and float(distance.max()) < 0.3, entry.name
    influence = [contents.table["self_influence"] for contents in (here, there)]
    torch.testing.assert_close(*influence, rtol=1e-3, atol=0)


def dense_of(factors):
    left, right = factors
    return left.float() if right is None else left.float() @ right.float().mT


@pytest.mark.parametrize("name", ["default", "all"])
def test_of_a_batch_of_the_first_pass_neither(name):
    config, counts = CONFIGS[name][0], []
    for layers in (2, 4):
        with FakeDevice() as fake:
            rows = ShardRows(on_device(model_of("llama", layers)), config)
            first_pass = curvature_of(config).first_pass
            statistics = {entry.name: first_pass.statistic(entry) for entry in rows.entries}
            with rows.recorder(statistics, dict.fromkeys(statistics, without_gradient)) as recorder:
                recorder.record(BATCHES[0])
                fake.forget()
                recorder.record(BATCHES[1])
            counts.append(fake.crossings.counts)
    assert counts[0] == counts[1], str(fake.crossings)

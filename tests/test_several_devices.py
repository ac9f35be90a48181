"""Models that accelerate spreads over several devices, or brings to one layer by layer: recorded as on the CPU, or
refused by name. The devices are fake ones: see `fake_device`."""

import accelerate
import pytest
import torch
from fake_device import DEVICE, SECOND_DEVICE, FakeDevice, on_device, on_host
from recordings import build, token_batch
from shard_rows import ShardRows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.algebra.matrices import LowRankMatrices, dense
from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.recording.stored_weights import execution_device


BATCHES = [token_batch([5, 9, 3]), token_batch([7, 9, 4], seed=1)]
CONFIGS = {
    "default": InfluenceConfig(),
    "all": InfluenceConfig(target_modules="all"),
    "trak": InfluenceConfig.trak(projection_dim=64),
    "cosine": InfluenceConfig.grad_cos(),
}
UNTIED = {"tie_word_embeddings": False, "attn_implementation": "eager"}

# Where the parts of a model are: embeddings, two blocks, the last norm and the head, which goes with the embeddings
# where it is tied to them.
PLACES = {
    "in two halves": [DEVICE, DEVICE, SECOND_DEVICE, SECOND_DEVICE, SECOND_DEVICE],
    "and back": [SECOND_DEVICE, SECOND_DEVICE, DEVICE, DEVICE, SECOND_DEVICE],
    "norm apart": [DEVICE, DEVICE, DEVICE, SECOND_DEVICE, DEVICE],
    "some offloaded": [DEVICE, "cpu", DEVICE, "cpu", "cpu"],
}
NAMES = {
    "llama": [["model.embed_tokens", "model.rotary_emb"], ["model.layers.0"], ["model.layers.1"], ["model.norm"]],
    "gpt2": [["transformer.wte", "transformer.wpe"], ["transformer.h.0"], ["transformer.h.1"], ["transformer.ln_f"]],
}


def spread(model, kind, where, tmp_path):
    """The model as `device_map` and accelerate's functions make it."""
    if where == "cpu offload":
        return accelerate.cpu_offload(model, execution_device=DEVICE)
    if where == "disk offload":
        return accelerate.disk_offload(model, tmp_path, execution_device=DEVICE)
    parts = [*NAMES[kind], ["lm_head"]]
    device_map = {name: place for names, place in zip(parts, PLACES[where], strict=True) for name in names}
    return accelerate.dispatch_model(model, device_map, main_device=DEVICE)


WHERE = [*PLACES, "cpu offload", "disk offload"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", NAMES)
def test_everything_is_recorded_wherever_its_layers_are(kind, where, tmp_path):
    compare(kind, where, CONFIGS["all"], tmp_path)


@pytest.mark.parametrize("name", ["default", "trak", "cosine"])
def test_it_is_stored_under_every_config(name, tmp_path):
    compare("llama", "in two halves", CONFIGS[name], tmp_path)


def compare(kind, where, config, tmp_path):
    here = ShardRows(build(kind, **UNTIED), config)
    first = here.first_pass(BATCHES[0])
    here = ShardRows(here.model, config, first)
    contents = here.record(BATCHES)
    with here.recorder() as recorder:
        expected = recorder.record(BATCHES[1])
    with FakeDevice():
        there = ShardRows(spread(build(kind, **UNTIED), kind, where, tmp_path), config, first)
        assert execution_device(there.model) == DEVICE
        with there.recorder() as recorder:
            found = recorder.record(BATCHES[1])
        stored = there.record(BATCHES)
    torch.testing.assert_close(found.losses, expected.losses)
    assert list(found.gradients) == list(expected.gradients)
    for module, gradients in expected.gradients.items():
        truth = dense(gradients)
        assert float((on_host(dense(found.gradients[module])) - truth).norm()) < 1e-4 * float(truth.norm()), module
    devices = {(g.left if isinstance(g, LowRankMatrices) else g).device for g in found.gradients.values()}
    assert devices == ({DEVICE} if "off" in where else {DEVICE, SECOND_DEVICE})
    assert stored.active == contents.active
    for column, values in contents.table.items():
        torch.testing.assert_close(stored.table[column], values, rtol=1e-4, atol=1e-12, msg=column)


def test_what_crosses_does_not_depend_on_the_number_of_layers():
    counts = []
    for layers in (2, 4):
        with FakeDevice() as fake:
            model = build("llama", num_hidden_layers=layers, **UNTIED)
            blocks = {f"model.layers.{i}": DEVICE if i < layers / 2 else SECOND_DEVICE for i in range(layers)}
            ends = {"model.embed_tokens": DEVICE, "model.rotary_emb": DEVICE, "model.norm": SECOND_DEVICE}
            accelerate.dispatch_model(model, {**blocks, **ends, "lm_head": SECOND_DEVICE}, main_device=DEVICE)
            ShardRows(model, InfluenceConfig.paper()).record(BATCHES, before=fake.forget)
            # Between the devices, accelerate sends masks and positions with the hidden states, block by block.
            counts.append(fake.crossings.of("to host", "to device", "wait").counts)
    assert counts[0] == counts[1] and counts[0]["to host"] == 4  # what is stored comes from each device


@pytest.mark.parametrize("device", [DEVICE, SECOND_DEVICE, torch.device("cpu")], ids=str)
def test_a_batch_is_brought_to_where_the_model_computes(device):
    with FakeDevice():
        rows = ShardRows(on_device(build("llama")), InfluenceConfig.paper())
        batch = BATCHES[0] if device.type == "cpu" else on_device(BATCHES[0], device)
        with rows.recorder() as recorder:
            gradients = recorder.record(batch).gradients
        assert {gradient.device for gradient in gradients.values()} == {DEVICE}


@pytest.mark.parametrize("where", ["offloaded", "on two devices"])
def test_a_weight_that_has_become_two_is_refused_by_name(where):
    message = r"Module 'transformer.wte' shares its weight with 'lm_head.weight'.* exclude_modules=.'transformer.wte'"
    with FakeDevice():
        model = build("gpt2")
        if where == "offloaded":
            accelerate.cpu_offload(model, execution_device=DEVICE)
        else:
            model.lm_head.weight = torch.nn.Parameter(on_device(model.lm_head.weight.detach()))
        rows = ShardRows(model, CONFIGS["all"])
        with pytest.raises(UnsupportedModuleError, match=message), rows.recorder():
            pass


def test_a_build_leaves_it_out_and_says_so(tmp_path, rows, gpt2, caplog):
    model = accelerate.cpu_offload(gpt2, execution_device=torch.device("cpu"))
    config = InfluenceConfig.grad_dot(target_modules="all")
    index = InfluenceIndex.build(model, rows.select(range(6)), tmp_path / "index", config=config)
    assert {"transformer.wte", "lm_head"}.isdisjoint(entry.name for entry in index.manifest.modules)
    assert (
        "Module 'transformer.wte' shares its weight with 'lm_head.weight', and the model is offloaded" in caplog.text
    )

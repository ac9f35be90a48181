"""The first pass in groups of layers: the same as all at once, and kept where it was interrupted."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.algebra.whitening import SecondMoments
from lorif_hf.building import builder
from lorif_hf.building.first_pass import Gathering
from lorif_hf.errors import RecordingError
from lorif_hf.storage.layout import CURVATURE, MANIFEST


FEW = 16_000  # bytes: about two layers of the model's at once


def build(folder, model=None, **options):
    return InfluenceIndex.build(model or make_gpt2(), make_rows(9), folder, **options)


def parts(folder):
    """Everything that the index holds but what says where and how it was built."""
    return {path.name: load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def equal(one, other):
    assert one.keys() == other.keys()
    for file, tensors in one.items():
        assert tensors.keys() == other[file].keys()
        assert all(torch.equal(tensor, other[file][name]) for name, tensor in tensors.items()), file


@pytest.mark.parametrize("config", [InfluenceConfig(), InfluenceConfig(target_modules="all")], ids=["linear", "all"])
def test_groups_of_layers_make_the_same_index(tmp_path, caplog, config):
    whole = build(tmp_path / "whole", config=config)
    with caplog.at_level(logging.INFO, "lorif_hf"):
        grouped = build(tmp_path / "grouped", config=config, max_memory=FEW)
    assert "do not fit into memory at once" in caplog.text
    equal(parts(tmp_path / "whole"), parts(tmp_path / "grouped"))
    assert torch.equal(whole.self_influence(), grouped.self_influence())
    manifests = [json.loads((tmp_path / name / MANIFEST).read_text()) for name in ("whole", "grouped")]
    assert manifests[0]["build"] == manifests[1]["build"] and manifests[0]["modules"] == manifests[1]["modules"]


def test_memory_that_ends_is_answered_with_fewer_layers_at_once(tmp_path, monkeypatch, caplog):
    build(tmp_path / "whole")
    add, held = SecondMoments.add, set()

    def limited(moments, other):
        held.add(id(moments))
        if len(held) > 3:
            held.clear()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        add(moments, other)

    monkeypatch.setattr(SecondMoments, "add", limited)
    gather = Gathering._gather

    def anew(*arguments):
        held.clear()
        return gather(*arguments)

    monkeypatch.setattr(Gathering, "_gather", anew)
    build(tmp_path / "limited")
    assert "Out of memory with the moments of 8 layers at once: half as many." in caplog.text
    equal(parts(tmp_path / "whole"), parts(tmp_path / "limited"))


def test_what_was_gathered_before_a_build_died_is_kept(tmp_path, monkeypatch):
    build(tmp_path / "whole")
    gather, gathered = Gathering._gather, []

    def dies(self, group, *arguments):
        gathered.append([entry.name for entry in group])
        if len(gathered) == 3:
            raise KeyboardInterrupt
        gather(self, group, *arguments)

    monkeypatch.setattr(Gathering, "_gather", dies)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "again", max_memory=FEW)
    done = [name for group in gathered[:2] for name in group]
    gathered.clear()
    damaged = sorted((tmp_path / "again").rglob("first-pass-*.safetensors"))[0]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    monkeypatch.setattr(Gathering, "_gather", lambda self, group, *a: gathered.append(1) or gather(self, group, *a))
    build(tmp_path / "again")  # all that is missing fits by now
    assert len(gathered) == 1 and len(done) >= 2
    equal(parts(tmp_path / "whole"), parts(tmp_path / "again"))


def test_a_moment_that_is_not_finite_names_its_layer(tmp_path, monkeypatch):
    zeros = SecondMoments.zeros
    monkeypatch.setattr(SecondMoments, "zeros", lambda d1, d2: poisoned(zeros(d1, d2)))
    with pytest.raises(RecordingError, match=r"Module 'transformer.h.0.attn.c_attn' cannot be whitened"):
        build(tmp_path / "index")


def poisoned(moments):
    moments.outputs[0, 0] = torch.inf
    return moments


def test_layers_with_the_same_inputs_share_their_whitener(tmp_path, monkeypatch, llama_rows):
    model, rows = llama_rows
    config = InfluenceConfig(max_projection_dim=6, factor_rank=6, bits=16, dtype="float32")
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=config)
    names = load_file(tmp_path / "index" / CURVATURE).keys()
    owners = {e.name: e.input_of for e in index.manifest.modules}
    value = "model.layers.0.self_attn.v_proj"
    assert [owners[f"model.layers.0.self_attn.{x}_proj"] for x in "qkv"] == [value, value, None]
    assert {name for name, of in owners.items() if of is None} == {
        name.removesuffix(".in_whitener") for name in names if name.endswith(".in_whitener")
    }
    monkeypatch.setattr(builder, "sharing_inputs", lambda entries, shared: entries)
    apart = InfluenceIndex.build(model, rows, tmp_path / "apart", config=config)
    assert len(load_file(tmp_path / "apart" / CURVATURE)) > len(names)
    queries = rows.select(range(3))
    # v has the projection that it has in both; the layers that share are queried by themselves too.
    for pattern in (["v_proj"], ["o_proj", "down_proj"]):
        torch.testing.assert_close(
            index.scores(model, queries, modules=pattern),
            apart.scores(model, queries, modules=pattern),
            rtol=1e-4,
            atol=1e-6,
        )
    assert index.scores(model, queries, modules=["q_proj"]).shape == (3, len(rows))
    index.verify()


@pytest.fixture
def llama_rows(build_model=None):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)), make_rows(8)

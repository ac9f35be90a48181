"""The sweep over the classes of transformers: a few telling ones of them, and that it sees what is wrong."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import models_page, sweep
from benchmarks.small_models import CAUSAL_LM, CLASSIFIER, classes, small_model
from lorif_hf import InfluenceIndex
from lorif_hf.errors import RecordingError


# And whether their rows must be recorded one at a time: that of the others would be slow for nothing.
BATCHES, ALONE = False, True
TELLING = {
    "GPT2LMHeadModel": BATCHES,  # Conv1D
    "LlamaForCausalLM": BATCHES,
    "OPTForCausalLM": BATCHES,
    "BloomForCausalLM": BATCHES,
    "GPTJForCausalLM": BATCHES,
    "MixtralForCausalLM": BATCHES,  # fused experts
    "RwkvForCausalLM": ALONE,  # its state is changed in place, but in training
    "MambaForCausalLM": BATCHES,  # `dt_proj.weight` is used without its module
    "FalconMambaForCausalLM": BATCHES,
    "JambaForCausalLM": BATCHES,
    "LongcatFlashForCausalLM": ALONE,  # as is its router's; sorts its tokens by expert
    "Llama4ForCausalLM": BATCHES,  # a router that is a Linear and returns two tensors
    "PhimoeForCausalLM": BATCHES,
    "DeepseekV4ForCausalLM": BATCHES,  # a Linear that multiplies by groups: refused
    "Zamba2ForCausalLM": BATCHES,  # modules that share a weight
    "AXK2ForCausalLM": BATCHES,  # layers that no gradient reaches
    "BartForCausalLM": ALONE,  # labels are not shifted
    "XLNetLMHeadModel": ALONE,  # tokens come first, rows second
    "ReformerModelWithLMHead": BATCHES,  # a backward pass of its own: refused
    "BertForSequenceClassification": BATCHES,
    "RobertaForSequenceClassification": BATCHES,
    "T5ForSequenceClassification": BATCHES,
    "PerceiverForSequenceClassification": BATCHES,  # takes tokens under two names
    "FunnelForSequenceClassification": BATCHES,  # shorter from block to block
    "CanineForSequenceClassification": ALONE,  # groups its tokens over the padding
    "DebertaV2ForSequenceClassification": ALONE,  # a layer that sees positions, of no row
    "LongformerForSequenceClassification": ALONE,  # rows are padded and cut to windows
    "ConvBertForSequenceClassification": ALONE,  # sees the padding
    "T5GemmaForSequenceClassification": ALONE,
}
TASKS = {name: task for task, name in classes()}


@pytest.mark.parametrize("name", TELLING)
def test_an_index_equals_autograd_or_is_refused_before_it_is_recorded(name):
    entry = sweep.sweep_class(TASKS[name], name)
    assert entry["verdict"] in (sweep.EQUAL, sweep.REFUSED), entry
    assert entry["alone"] == TELLING[name]


def test_without_the_check_the_sweep_sees_what_is_silently_different():
    """Another loss; and padding that a row's loss depends on."""
    bart = sweep.sweep_class(CAUSAL_LM, "BartForCausalLM", check=False)
    assert bart["verdict"] == sweep.DIFFERENT and bart["relerr"] > 0.5 and bart["loss_error"] > 0.05
    fnet = sweep.sweep_class(CLASSIFIER, "FNetForSequenceClassification", check=False)
    assert fnet["verdict"] == sweep.DIFFERENT and fnet["rows"] != "square" and fnet["relerr"] > 0.1


def test_a_small_layer_that_is_recorded_as_zero_is_seen(monkeypatch):
    """Where it is so small a part of the whole that the scores hardly change."""

    def scores(self, *args, **options):
        found = original(self, *args, **options)
        found["transformer.h.1.attn.c_attn"] *= 1 - 5e-2
        return found

    original = InfluenceIndex.scores
    monkeypatch.setattr(InfluenceIndex, "scores", scores)
    monkeypatch.setattr(sweep, "TOLERANCE", 1.0)
    entry = sweep.compare(small_model("GPT2LMHeadModel"), CAUSAL_LM, sweep.Rows((5, 3)))
    assert entry["verdict"] == sweep.DIFFERENT and entry["differing"] == ["transformer.h.1.attn.c_attn"]


@pytest.mark.parametrize(
    "error, after, verdict",
    [
        (RecordingError("no"), False, sweep.REFUSED),
        (RecordingError("no"), True, sweep.LATE),
        (RuntimeError("no"), False, sweep.RAW),
    ],
)
def test_errors_are_told_apart_by_whose_they_are_and_when_they_come(monkeypatch, error, after, verdict):
    def build(model, rows, path, **options):
        if after:
            (path / "factors").mkdir(parents=True)
            (path / "factors" / "00000.safetensors").touch()
        raise error

    monkeypatch.setattr(InfluenceIndex, "build", build)
    entry = sweep.compare(None, CAUSAL_LM, sweep.Rows((3, 4)))
    assert (entry["verdict"], entry["message"]) == (verdict, f"{type(error).__name__}: no")


def test_the_summed_loss_is_what_it_says():
    """Of a model that shifts its labels and one that does not."""
    row = {"input_ids": [5, 9, 7, 2]}
    for name, first in (("GPT2LMHeadModel", 1), ("BartForCausalLM", 0)):
        model, ids = small_model(name), torch.tensor([row["input_ids"]])
        logits = model(input_ids=ids).logits[0]
        expected = torch.nn.functional.cross_entropy(logits[: 4 - first], ids[0, first:], reduction="sum")
        torch.testing.assert_close(sweep.summed_loss(model, row, CAUSAL_LM), expected)


def hang(task, name):
    time.sleep(60)


def die(task, name):
    os._exit(1)


@pytest.mark.parametrize("fate", [hang, die])
def test_a_class_that_hangs_or_dies_gives_no_answer_and_the_next_goes_on(monkeypatch, fate):
    worker = sweep.Worker(seconds=1)
    worker.start()
    monkeypatch.setattr(sweep, "sweep_class", fate)
    lost = worker.run(CAUSAL_LM, "GPT2LMHeadModel")
    assert (lost["verdict"], lost["message"][:21]) == (sweep.NO_ANSWER, "none within 1 seconds")
    assert worker.pool is None
    monkeypatch.undo()
    worker.seconds = 60
    assert worker.run(CAUSAL_LM, "NoSuchModel")["verdict"] == sweep.NOT_BUILT
    worker.stop()


def test_every_class_of_transformers_is_in_the_results_and_none_is_silently_different():
    results = json.loads(sweep.RESULTS.read_text(encoding="utf-8"))["results"]
    assert not [result for result in results if result["verdict"] in (sweep.DIFFERENT, sweep.RAW, sweep.LATE)]
    assert len(results) > 300


def test_the_page_is_that_of_the_results():
    results = json.loads(sweep.RESULTS.read_text(encoding="utf-8"))["results"]
    written = sweep.PAGE.read_text(encoding="utf-8")
    version = written.partition("sequence classifier of transformers ")[2].split()[0]
    assert written == models_page.page(results, version)

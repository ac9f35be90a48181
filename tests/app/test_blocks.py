"""The page in Gradio: what is on it, and what it tells nobody."""

import pytest
from app_rows import words
from datasets import Dataset
from tiny import plain_config
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from lorif_hf import InfluenceIndex
from lorif_hf.app.blocks import AT_ONCE, WAITING, blocks
from lorif_hf.app.questions import Questions


pytest.importorskip("gradio", reason="Gradio is not installed (pip install 'lorif-hf[app]')")


def components(app, kind):
    return {part["props"].get("elem_id"): part["props"] for part in app.config["components"] if part["type"] == kind}


def test_the_app_of_a_language_model(questions):
    app = blocks(questions)
    assert app.analytics_enabled is False
    tabs = [part["props"]["label"] for part in app.config["components"] if part["type"] == "tabitem"]
    assert tabs == ["Ask", "Self-influence", "File", "Row"]
    said = components(app, "textbox")["lorif-said"]
    assert said["visible"] is True
    named = {event["api_name"] for event in app.config["dependencies"] if event["api_visibility"] == "public"}
    assert named == {"ask", "ask_file", "row"}
    limits = {fn.concurrency_limit for fn in app.fns.values() if fn.concurrency_id == "model"}
    assert limits <= {AT_ONCE, "default"} and WAITING == app._queue.max_size


def test_the_app_of_a_classifier_offers_its_labels(tmp_path):
    config = DistilBertConfig(vocab_size=50, dim=8, n_layers=1, n_heads=2, hidden_dim=16, num_labels=2)
    config.id2label = {0: "bad", 1: "good"}
    model = DistilBertForSequenceClassification(config).eval()
    rows = Dataset.from_list([{"input_ids": [i % 9 + 1, 5, 7], "labels": i % 2, "text": f"{i}"} for i in range(8)])
    index = InfluenceIndex.build(model, rows, tmp_path / "index", config=plain_config(), processing_class=words())
    app = blocks(Questions(index, model))
    choices = components(app, "dropdown")["lorif-said"]["choices"]
    assert [name for name, _ in choices] == ["the model's own", "bad", "good"]

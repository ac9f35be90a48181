"""`lorif-hf build`: the same index as the library builds, from a file or a dataset."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from terminal import SENTENCES, refused, run, train_tokenizer
from tiny import make_gpt2

from lorif_hf import InfluenceConfig, InfluenceIndex


TEXTS = SENTENCES[:4]


def scores(index, query="the cat sat"):
    """Of a query that is tokenized already: that takes no process of the index's tokenizer."""
    return index.scores(make_gpt2(), {"input_ids": train_tokenizer()(query)["input_ids"]})


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "röws.txt"
    path.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def test_a_text_file_becomes_the_index_that_the_library_builds_of_its_lines(saved, texts, tmp_path):
    result = run("build", saved / "model", texts, tmp_path / "i", "--config", "paper", "--set", "factor_rank=2")
    assert result.exit_code == 0 and "Ask it: lorif-hf attribute" in result.stdout
    built = InfluenceIndex.from_pretrained(tmp_path / "i")
    tokens = Dataset.from_dict(dict(train_tokenizer()(TEXTS)))
    config = InfluenceConfig.paper(factor_rank=2)
    expected = InfluenceIndex.build(make_gpt2(), tokens, tmp_path / "expected", config=config)
    assert built.config == expected.config and torch.equal(scores(built), scores(expected))
    examples = built.examples([0, 3])
    assert [row["text"] for row in examples] == [TEXTS[0], TEXTS[3]]
    assert [row["example_id"] for row in examples] == ["line 1", "line 7"]
    assert (tmp_path / "i" / "tokenizer").is_dir()


def test_prompts_and_completions_are_measured_on_the_completion(saved, tmp_path):
    rows = Dataset.from_dict({"q": ["the cat", "a dog"], "a": [" sat on", " ran"], "topic": ["cats", "dogs"]})
    rows.to_json(tmp_path / "rows.jsonl")
    columns = ["--prompt-column", "q", "--completion-column", "a", "--max-length", 8]
    said = json.loads(
        run("build", saved / "model", tmp_path / "rows.jsonl", tmp_path / "i", *columns, "--json").stdout
    )
    assert said["num_examples"] == 2 and said["path"] == str(tmp_path / "i")
    assert json.loads(run("info", tmp_path / "i", "--json").stdout) == said
    built = InfluenceIndex.from_pretrained(tmp_path / "i")
    assert [row["text"] for row in built.examples([0, 1])] == ["the cat sat on", "a dog ran"]
    tokenizer = train_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in ("the cat sat on", "a dog ran")]
    labels = [[-100, -100, *row[2:]] for row in ids]
    tokens = Dataset.from_dict({"input_ids": ids, "labels": labels})
    expected = InfluenceIndex.build(make_gpt2(), tokens, tmp_path / "expected")
    assert torch.equal(scores(built), scores(expected))


def test_a_tokenized_dataset_is_taken_as_it_is_and_needs_no_tokenizer(saved, tmp_path):
    tokens = Dataset.from_dict(dict(train_tokenizer()(TEXTS)))
    tokens.save_to_disk(tmp_path / "tokens")
    assert run("build", saved / "model", tmp_path / "tokens", tmp_path / "i").exit_code == 0
    expected = InfluenceIndex.build(make_gpt2(), tokens, tmp_path / "expected")
    built = InfluenceIndex.from_pretrained(tmp_path / "i")
    assert torch.equal(scores(built), scores(expected)) and not (tmp_path / "i" / "tokenizer").exists()


def test_of_an_adapter_what_was_trained_is_indexed(saved, texts, tmp_path):
    base = make_gpt2()
    base.config._name_or_path = base.name_or_path = str(saved / "model")
    config = LoraConfig(r=2, target_modules=["c_fc"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    arguments = ["--no-store-text", "--json"]
    said = json.loads(run("build", tmp_path / "adapter", texts, tmp_path / "i", *arguments).stdout)
    assert all("lora" in name for name in said["layers"]) and said["coverage"] == 1
    assert InfluenceIndex.from_pretrained(tmp_path / "i").examples([0])[0]["text"] is None


def test_an_index_that_is_there_is_replaced_where_that_is_asked(saved, texts, tmp_path):
    assert run("build", saved / "model", texts, tmp_path / "i").exit_code == 0
    assert "--overwrite" in refused("build", saved / "model", texts, tmp_path / "i")
    texts.write_text("\n".join(SENTENCES[:3]))
    said = run("build", saved / "model", texts, tmp_path / "i", "--overwrite", "--json")
    assert json.loads(said.stdout)["num_examples"] == 3

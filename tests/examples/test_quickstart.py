"""The demo, run for real: what it prints is what a Python user would expect."""

import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import quickstart


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return quickstart.train(tmp_path_factory.mktemp("demo"))


@pytest.mark.slow
def test_the_passage_behind_each_question_is_among_the_first_three(trained):
    model, _, index = trained
    result = index.attribute(model, quickstart.QUESTIONS, top_k=3)
    for question, words in zip(result, ("context manager", "anonymous functions", "generator"), strict=True):
        texts = [row["text"] for row in question.to_list()]
        assert any(words in text for text in texts), f"{question.queries[0]!r} -> {texts}"


@pytest.mark.slow
def test_a_training_example_used_as_the_query_ranks_first_among_1000_others(trained):
    model, tokenizer, index = trained
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(index), generator=generator)[:100].tolist()
    texts = [example["text"] for example in index.examples(rows)]
    ids = [tokenizer(text, truncation=True, max_length=quickstart.MAX_TOKENS)["input_ids"] for text in texts]
    scores = index.scores(model, [{"input_ids": one} for one in ids], batch_size=32)
    first = 0
    for row, of_all in zip(rows, scores, strict=True):
        others = torch.randperm(len(index), generator=generator)
        others = others[others != row][:1000]
        assert len(others) == 1000
        first += bool(of_all[row] > of_all[others].max())
    print(f"{first} of 100 training examples rank first among 1,000 others")
    assert first >= 95


@pytest.mark.slow
def test_the_demo_shows_and_writes_what_it_promises(trained, tmp_path, capsys):
    model, _, index = trained
    result = index.attribute(model, quickstart.QUESTIONS, top_k=5)
    quickstart.show(result)
    shown = capsys.readouterr().out
    assert "score" in shown and "training example" in shown and "lambda" in shown
    result.save_html(tmp_path / "attribution.html")
    page = (tmp_path / "attribution.html").read_text()
    assert all(row["example_id"] in page for row in result.to_list())

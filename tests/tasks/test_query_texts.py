"""A query as people read it: text, what is no text by its shape, both sides of a pair, and each token of an answer."""

import pytest
import torch

from lorif_hf.tasks import task_of
from lorif_hf.tasks.query_texts import decoded, pair_text, query_text, target_texts


TEXT = "The capital of France is Paris"


def test_tokens_are_decoded_or_counted_up(tokenizer):
    assert query_text({"input_ids": tokenizer(TEXT)["input_ids"]}, tokenizer) == TEXT
    assert query_text({"input_ids": torch.tensor([1, 2])}, None) == "1 2"
    assert decoded(list(range(40)), None) == " ".join(map(str, range(32)))


@pytest.mark.parametrize("label", [{"labels": 2}, {"label": torch.tensor(2)}], ids=["number", "tensor"])
def test_what_is_no_text_is_told_by_its_shape_and_its_label(tokenizer, label):
    assert query_text({"pixel_values": torch.ones(3, 8, 9)}, tokenizer) == "pixel_values 3 x 8 x 9"
    assert query_text({"pixel_values": torch.ones(3, 8, 9), **label}, tokenizer) == "pixel_values 3 x 8 x 9 → 2"
    assert query_text({"past_values": [0.5, 1.5], "labels": [0.25, 1.0]}, None) == "past_values 2 → 0.25, 1"
    assert query_text({"labels": {"a": 1}}, None) == ""


def test_labels_that_are_a_text_of_their_own_stand_behind_an_arrow(tokenizer):
    source, target = tokenizer("The capital")["input_ids"], tokenizer(" of France")["input_ids"]
    feature = {"input_ids": source, "labels": [*target, -100]}
    assert query_text(feature, tokenizer, targets=True) == "The capital →  of France"
    assert query_text(feature, tokenizer) == "The capital"


def test_letters_that_are_said_twice_are_two():
    class Speech:
        word_delimiter_token = "|"

        def decode(self, ids, group_tokens=True):
            return "helo" if group_tokens else "hello"

    assert decoded([1, 2, 3, 3, 4], Speech()) == "hello"


def test_both_sides_of_a_pair_stand_under_what_they_share(tokenizer):
    rows = [tokenizer(text)["input_ids"] for text in (TEXT, "The capital of France is Rome")]
    features = [{"input_ids": row, "labels": row} for row in rows]
    shown = pair_text(features, tokenizer)
    start, chosen, rejected = shown.split("\n")
    assert chosen.startswith("chosen: ") and rejected.startswith("rejected: ")
    assert start + chosen.removeprefix("chosen: ") == TEXT
    assert start + rejected.removeprefix("rejected: ") == "The capital of France is Rome"
    assert pair_text([{"input_ids": [1, 2]}, {"input_ids": [3]}], None) == "chosen: 1 2\nrejected: 3"


def test_targets_are_tokens_or_the_names_of_classes(causal, classifier, tokenizer):
    ids = tokenizer(TEXT)["input_ids"]
    feature = {"input_ids": ids, "labels": torch.tensor(ids)}
    shown = target_texts(causal, task_of(causal), feature, range(len(ids)), tokenizer)
    assert "".join(shown) == TEXT
    named = {"input_ids": [5, 6], "labels": torch.tensor([-100, 1])}
    assert target_texts(classifier, task_of(classifier), named, [1], None) == ["6 (good)"]
    assert target_texts(classifier, task_of(classifier), {"labels": torch.tensor([2])}, [0], None) == ["odd"]

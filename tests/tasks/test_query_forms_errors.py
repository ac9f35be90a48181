"""A query that cannot be measured is a QueryError that names its number, what was found and what is expected."""

import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from transformers import T5Config, T5ForConditionalGeneration

from lorif_hf.errors import QueryError
from lorif_hf.tasks import task_of
from lorif_hf.tasks.own_loss import ModelLoss
from lorif_hf.tasks.query_forms import query_features


GOOD = "The capital of France is Paris"


def _fails(query, model, tokenizer):
    with pytest.raises(QueryError) as caught:
        query_features(query, model, task_of(model), tokenizer)
    return str(caught.value)


def _everywhere(query, model, tokenizer):
    """The same error alone, as query 0, and behind a good one, as query 1."""
    alone, second = _fails(query, model, tokenizer), _fails([GOOD, query], model, tokenizer)
    assert "uery 0 " in alone and "uery 1 " in second
    assert alone.replace("uery 0 ", "") == second.replace("uery 1 ", "")
    return alone


@pytest.mark.parametrize("query", ["", {"input_ids": []}, {"input_ids": torch.zeros(0, dtype=torch.int64)}])
def test_no_token(causal, classifier, tokenizer, query):
    for model in (causal, classifier):
        assert _everywhere(query, model, tokenizer) == "Query 0 is empty: it has no token."


@pytest.mark.parametrize("query", [[], (), iter([])])
def test_no_query(causal, tokenizer, query):
    message = _fails(query, causal, tokenizer)
    assert message.startswith("The query is empty: expected a string, a (prompt, completion)")


def test_a_batch_of_padding_only(causal, tokenizer):
    query = {"input_ids": torch.ones(1, 3, dtype=torch.int64), "attention_mask": torch.zeros(1, 3, dtype=torch.int64)}
    assert "is empty" in _everywhere(query, causal, tokenizer)


@pytest.mark.parametrize(
    "query",
    [
        "x",
        {"input_ids": [5]},
        {"input_ids": [5, 6], "labels": [5, -100]},
        {"input_ids": [5, 6], "labels": [-100, -100]},
        (GOOD, ""),
    ],
    ids=str,
)
def test_nothing_to_measure(causal, tokenizer, query):
    message = _everywhere(query, causal, tokenizer)
    assert "no token to measure" in message and "at least two tokens" in message


def test_an_empty_text_behind_a_bos_token(causal, opening_tokenizer):
    assert "no token to measure" in _everywhere("", causal, opening_tokenizer)


@pytest.mark.parametrize(("token", "shown"), [(320, "token 320"), (50_000, "token 50000"), (-1, "token -1")])
def test_a_token_out_of_the_vocabulary(causal, classifier, tokenizer, token, shown):
    for model in (causal, classifier):
        message = _everywhere({"input_ids": [5, token, 6]}, model, tokenizer)
        assert shown in message and "the model knows 320 tokens" in message and "another tokenizer" in message


def test_the_last_token_of_the_vocabulary_is_in_it(causal, tokenizer):
    assert query_features({"input_ids": [319, 319]}, causal, task_of(causal), tokenizer)


@pytest.mark.parametrize("kind", ["gpt2", "bert-classifier"])
def test_too_long(build, tokenizer, kind):
    model = build(kind)
    task = task_of(model)
    assert query_features({"input_ids": [5] * 48}, model, task, tokenizer)
    message = _everywhere({"input_ids": [5] * 49}, model, tokenizer)
    assert "has 49 tokens, the model takes at most 48: shorten it" in message


@pytest.mark.parametrize("query", [GOOD, ("The", " capital"), {"text": GOOD}])
def test_text_without_a_tokenizer(causal, query):
    message = _fails([{"input_ids": [1, 2]}, query], causal, None)
    assert "Query 1 is text, but the index holds no tokenizer: pass processing_class= or a dict" in message


def test_a_chat_without_a_tokenizer(causal):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert "Query 1 is " in _fails([{"input_ids": [1, 2]}, chat], causal, None)


def test_a_chat_without_a_template(causal, opening_tokenizer):
    kept, opening_tokenizer.chat_template = opening_tokenizer.chat_template, None
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        message = _everywhere(chat, causal, opening_tokenizer)
    finally:
        opening_tokenizer.chat_template = kept
    assert "no chat template: pass text instead" in message


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_a_chat_that_does_not_end_with_an_answer(causal, tokenizer, role):
    chat = [{"role": "assistant", "content": "a"}, {"role": role, "content": "b"}]
    assert f"ends with a message of '{role}'" in _everywhere(chat, causal, tokenizer)


@pytest.mark.parametrize("label", ["fine", "Good", ""])
def test_an_unknown_label_lists_the_known_ones(classifier, tokenizer, label):
    message = _everywhere((GOOD, label), classifier, tokenizer)
    assert f"label '{label}'" in message and "labels are bad, good, odd" in message


@pytest.mark.parametrize("label", [3, -1, 99])
def test_a_label_number_out_of_range(classifier, tokenizer, label):
    message = _everywhere((GOOD, label), classifier, tokenizer)
    assert str(label) in message and "bad, good, odd" in message


@pytest.mark.parametrize("label", [1, 0.5])
def test_a_label_for_a_causal_model(causal, tokenizer, label):
    assert "completion" in _everywhere((GOOD, label), causal, tokenizer)


@pytest.mark.parametrize("query", [{"a": 1}, {"prompt": "x"}, [1, 2], (GOOD, None), (GOOD, "a", "b", 1)], ids=str)
def test_unknown_forms_inside_a_list(causal, tokenizer, query):
    message = _fails([GOOD, query], causal, tokenizer)
    assert "Cannot read query 1, a " in message and "expected a string, a (prompt, completion)" in message


@pytest.mark.parametrize("query", [None, 3, 0.5, object()], ids=["None", "integer", "number", "object"])
def test_unknown_forms(causal, tokenizer, query):
    message = _fails(query, causal, tokenizer)
    assert f"of type {type(query).__name__}: expected a string" in message


def test_token_numbers_alone(causal, tokenizer):
    message = _fails([5, 6, 7], causal, tokenizer)
    assert "Cannot read query 0, a int" in message and "a dict with input_ids" in message


def test_rows_of_different_lengths_in_one_batch(causal, tokenizer):
    message = _everywhere({"input_ids": [[1, 2, 3], [4, 5]]}, causal, tokenizer)
    assert "input_ids" in message


def test_a_dictionary_of_splits_is_told_to_be_one(causal, tokenizer):
    splits = DatasetDict({"test": Dataset.from_dict({"text": [GOOD]})})
    message = _fails(splits, causal, tokenizer)
    assert message == "The query is a DatasetDict: pass one of its splits, query['test']."
    assert query_features(splits["test"], causal, task_of(causal), tokenizer)


def test_a_table_of_pandas_is_told_to_be_one(causal, tokenizer):
    message = _fails(Dataset.from_dict({"text": [GOOD]}).to_pandas(), causal, tokenizer)
    assert message.startswith("The query is a DataFrame of pandas, whose items are not its rows: pass a Dataset")


@pytest.mark.parametrize(
    "query", [{"pixel_values": torch.ones(3, 4, 4)}, {"input_features": [[0.5]]}], ids=["pixels", "sounds"]
)
def test_inputs_of_another_model_are_a_query_of_another_task(causal, tokenizer, query):
    name = next(iter(query))
    assert _everywhere(query, causal, tokenizer).startswith(
        f"Query 0 holds '{name}', but a LlamaForCausalLM needs 'input_ids': it is a query of another task than the "
    )


def test_an_image_for_a_language_model_is_a_query_of_another_task(causal, tokenizer):
    message = _fails([GOOD, Image.new("RGB", (4, 4))], causal, tokenizer)
    assert message.startswith("Query 1 is an image, but a LlamaForCausalLM takes none: it is a query of another task")
    assert "holds 'text'" not in message


@pytest.mark.parametrize("name", ["images", "image", "videos"])
@pytest.mark.parametrize("chat", ["messages", "prompt"])
def test_a_chat_with_pictures_says_what_to_pass(causal, tokenizer, name, chat):
    query = {chat: [{"role": "assistant", "content": "a"}], name: [Image.new("RGB", (4, 4))]}
    message = _fails([GOOD, query], causal, tokenizer)
    assert message.startswith(
        f"Query 1 is a chat with '{name}': where they stand among its tokens, only the processor"
    )
    assert "Pass what it makes of both, a dict with input_ids, pixel_values and the labels" in message


def test_labels_that_a_models_own_loss_is_made_of_are_missed(tokenizer):
    model = T5ForConditionalGeneration(T5Config(vocab_size=320, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    task = ModelLoss()
    with pytest.raises(QueryError) as caught:
        query_features([{"input_ids": [5, 6]}], model, task, tokenizer)
    assert str(caught.value) == (
        "Query 0 has no labels, which the loss of a T5ForConditionalGeneration is made of: add those that it is to be "
        "measured at, under 'labels'."
    )


def test_a_pair_that_is_a_list_is_refused_with_what_to_write(causal, tokenizer):
    """JSON has no tuples; a list is several queries."""
    expected = "A prompt with its completion is a tuple, ('The capital of France is', ' Paris'), or"
    assert expected in _fails(["The capital of France is", " Paris"], causal, tokenizer)
    assert expected in _fails([["The capital of France is", " Paris"]], causal, tokenizer)
    assert len(query_features([GOOD, GOOD], causal, task_of(causal), tokenizer)) == 2

"""Queries written under the names of a dataset's columns: nothing of them is dropped in silence."""

import json

import pytest
import torch
from datasets import Dataset
from recordings import train_tokenizer
from tokenizers import processors

from lorif_hf.errors import QueryError
from lorif_hf.tasks import Custom, task_of
from lorif_hf.tasks.query_forms import query_features


TEXT = "The capital of France is Paris"
CHAT = [{"role": "user", "content": "The capital of Italy?"}, {"role": "assistant", "content": "Rome"}]
TOOLS = [{"type": "function", "function": {"name": "search", "description": "made", "parameters": {}}}]


@pytest.fixture
def tooled(tokenizer):
    """The tokenizer with a template that shows tools and an option of its own."""
    kept = tokenizer.chat_template
    tokenizer.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% if thinking %}<|system|>{% endif %}" + kept
    )
    yield tokenizer
    tokenizer.chat_template = kept


def read(query, model, tokenizer):
    features = query_features(query, model, task_of(model), tokenizer)
    return [{key: torch.as_tensor(value).tolist() for key, value in feature.items()} for feature in features]


def fails(query, model, tokenizer):
    with pytest.raises(QueryError) as caught:
        query_features([TEXT, query], model, task_of(model), tokenizer)
    assert "uery 1 " in str(caught.value) or "query 1," in str(caught.value)
    return str(caught.value)


def measured(feature, tokenizer):
    return tokenizer.decode([token for token in feature["labels"] if token != -100])


@pytest.fixture(scope="module")
def pairing():
    """As BERT's: tells the first text from the second."""
    tokenizer = train_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A <eos> $B:1", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


# What there is


@pytest.mark.parametrize("label", [{}, {"label": 1}, {"label": "good"}, {"labels": 1}], ids=str)
def test_a_pair_of_texts_for_a_classifier(classifier, pairing, label):
    query = {"text": "The capital", "text_pair": " of France", **label}
    encoded = pairing("The capital", text_pair=" of France")
    expected = {"input_ids": encoded["input_ids"], "token_type_ids": encoded["token_type_ids"]}
    assert any(expected["token_type_ids"])
    assert read(query, classifier, pairing) == [{**expected, **({"labels": 1} if label else {})}]
    assert read(Dataset.from_list([query]), classifier, pairing) == read(query, classifier, pairing)


def test_token_types_of_one_text_are_kept_where_they_say_something(classifier, pairing):
    """XLNet gives its last token a type of its own."""
    plain = pairing(TEXT)["input_ids"]
    assert read(TEXT, classifier, pairing) == [{"input_ids": plain}]
    kept = pairing.backend_tokenizer.post_processor
    pairing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>:1", special_tokens=[("<eos>", pairing.eos_token_id)]
    )
    expected = {"input_ids": [*plain, pairing.eos_token_id], "token_type_ids": [0] * len(plain) + [1]}
    try:
        assert read([TEXT, (TEXT, "odd")], classifier, pairing) == [expected, {**expected, "labels": 2}]
    finally:
        pairing.backend_tokenizer.post_processor = kept


def test_several_labels(build, tokenizer):
    model = build("bert-classifier", problem_type="multi_label_classification")
    assert read({"text": TEXT, "label": [1.0, 0.0, 1.0]}, model, tokenizer)[0]["labels"] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)], ids=["list", "JSON"])
@pytest.mark.parametrize(
    "chat", [{"messages": CHAT}, {"prompt": CHAT[:1], "completion": CHAT[1:]}], ids=["messages", "completion"]
)
def test_tools_and_options_of_a_chat(causal, tooled, tools, chat):
    (feature,) = read({**chat, "tools": tools, "chat_template_kwargs": {"thinking": True}}, causal, tooled)
    encoded = tooled.apply_chat_template(CHAT, tools=TOOLS, thinking=True)
    assert feature["input_ids"] == encoded["input_ids"]
    assert "search" in tooled.decode(feature["input_ids"]) and measured(feature, tooled) == "Rome<eos>"
    (plain,) = read(chat, causal, tooled)
    assert len(plain["input_ids"]) < len(feature["input_ids"]) and measured(plain, tooled) == "Rome<eos>"


def test_a_conversational_completion_is_measured_on_all_of_it(causal, tokenizer):
    query = {"prompt": CHAT[:1], "completion": [CHAT[1], *CHAT]}
    (feature,) = read(query, causal, tokenizer)
    assert measured(feature, tokenizer) == "Rome<eos><|user|>The capital of Italy?<eos><|assistant|>Rome<eos>"
    (last,) = read({"messages": query["prompt"] + query["completion"]}, causal, tokenizer)
    assert last["input_ids"] == feature["input_ids"] and measured(last, tokenizer) == "Rome<eos>"


@pytest.mark.parametrize("prompt", [CHAT[:1], [{"role": "system", "content": "made"}, *CHAT, CHAT[0]]], ids=len)
@pytest.mark.parametrize("end", ["", "<eos>"])
def test_a_conversational_completion_is_what_trl_trains_on(causal, tokenizer, tmp_path, prompt, end):
    trl = pytest.importorskip("trl")
    kept = tokenizer.chat_template
    tokenizer.chat_template = kept + end
    row = {"prompt": prompt, "completion": CHAT[1:], "chat_template_kwargs": {"thinking": True}}
    try:
        arguments = trl.SFTConfig(str(tmp_path), report_to="none", use_cpu=True, eos_token="<eos>", max_length=None)
        trainer = trl.SFTTrainer(causal, arguments, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
        (trained,) = trainer.train_dataset
        (feature,) = read(row, causal, tokenizer)
    finally:
        tokenizer.chat_template = kept
    assert feature["input_ids"] == trained["input_ids"]
    mask = trained.get("completion_mask") or [label != -100 for label in trained["labels"]]
    assert [label != -100 for label in feature["labels"]] == [bool(bit) for bit in mask]


@pytest.mark.parametrize("label", [{}, {"label": 2}, {"label": "odd"}], ids=str)
def test_a_chat_for_a_classifier_is_its_tokens(classifier, tokenizer, label):
    """As reward models are trained; it need not end with an answer."""
    expected = {"input_ids": tokenizer.apply_chat_template(CHAT[:1])["input_ids"], **({"labels": 2} if label else {})}
    assert read({"messages": CHAT[:1], **label}, classifier, tokenizer) == [expected]
    if not label:
        assert read(CHAT[:1], classifier, tokenizer) == [expected]


@pytest.mark.parametrize("name", ["id", "example_id"])
def test_a_rows_name_is_no_part_of_the_query(causal, tokenizer, name):
    assert read({"text": TEXT, name: "row-3"}, causal, tokenizer) == read(TEXT, causal, tokenizer)


def test_a_column_without_a_value_is_not_there(causal, tokenizer):
    query = {"text": TEXT, "messages": None, "input_ids": None, "label": None}
    assert read(query, causal, tokenizer) == read(TEXT, causal, tokenizer)


def test_a_training_row_is_a_query_whatever_columns_it_has(causal, tokenizer):
    row = {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "text": "x", "example_id": "y", "source": {"a": 1}}
    assert query_features(row, causal, task_of(causal), tokenizer) == [row]
    rows = Dataset.from_list([{**row, "messages": CHAT, "split": None}] * 2)
    assert [feature["input_ids"] for feature in query_features(rows, causal, task_of(causal), None)] == [[5, 6, 7]] * 2


def test_a_padded_batch_with_texts_beside_it(causal):
    batch = {"input_ids": [[5, 6], [7, 0]], "attention_mask": [[1, 1], [1, 0]], "text": ["a", "b"]}
    with pytest.raises(QueryError, match="no token to measure"):
        query_features(batch, causal, task_of(causal), None)
    batch["input_ids"], batch["attention_mask"] = [[5, 6, 8], [7, 8, 0]], [[1, 1, 1], [1, 1, 0]]
    found = query_features(batch, causal, task_of(causal), None)
    assert [(feature["input_ids"].tolist(), feature["text"]) for feature in found] == [([5, 6, 8], "a"), ([7, 8], "b")]


# What there is not


@pytest.mark.parametrize(
    "query, unknown, accepted",
    [
        ({"text": TEXT, "text_pair": "b"}, "'text_pair'", "'text', and 'id'"),
        ({"text": TEXT, "label": 1}, "'label'", "'text', and 'id'"),
        ({"text": TEXT, "source": "x", "date": 3}, "'source', 'date'", "'text', and 'id'"),
        ({"text": TEXT, "messages": CHAT}, "'messages'", "'text', and 'id'"),
        ({"text": TEXT, "tools": TOOLS}, "'tools'", "'text', and 'id'"),
        ({"prompt": "a", "completion": "b", "tools": TOOLS}, "'tools'", "'prompt', 'completion', 'label', and 'id'"),
        ({"prompt": "a", "completion": "b", "rejects": "c"}, "'rejects'", "'prompt', 'completion', 'label', and"),
        ({"messages": CHAT, "documents": []}, "'documents'", "'messages', 'tools', 'chat_template_kwargs', and"),
        ({"messages": CHAT, 3: 4}, "'3'", "'messages', 'tools', 'chat_template_kwargs', and"),
        ({"messages": CHAT, "attention_mask": [1]}, "'attention_mask'", "'messages', 'tools'"),
    ],
    ids=str,
)
def test_a_key_without_a_meaning_is_refused_and_named(causal, tokenizer, query, unknown, accepted):
    message = fails(query, causal, tokenizer)
    assert message.startswith(f"Query 1 holds {unknown}, which means nothing to 'causal-lm' beside ")
    assert f"accepted are {accepted}" in message and "select_columns" in message


@pytest.mark.parametrize(
    "query", [{"prompt": "a", "completion": "good"}, {"sentence": "a", "label": 1}, {"label": 1}, {}], ids=str
)
def test_keys_that_make_no_query_are_answered_with_those_that_do(classifier, tokenizer, query):
    message = fails(query, classifier, tokenizer)
    assert message.startswith("Cannot read query 1, a dict with ") and all(f"'{key}'" in message for key in query)
    assert message.endswith(
        "For 'sequence-classification' a dict without input_ids holds 'text' (and 'text_pair', 'label', 'labels'); "
        "'messages' (and 'tools', 'chat_template_kwargs', 'label', 'labels')."
    )


@pytest.mark.parametrize(
    "query, reason",
    [
        ({"text": 3}, "Query 1 has 'text' of type int: expected a string."),
        ({"text": ["a", "b"]}, "Query 1 has 'text' of type list: expected a string."),
        ({"prompt": "a", "completion": 3}, "Query 1 has 'completion' of type int: expected a string."),
        ({"prompt": "a", "completion": CHAT}, "Query 1 has 'completion' of type list: expected a string."),
        ({"prompt": CHAT, "completion": "a"}, "In query 1, 'completion' is a str: expected a list of messages"),
        ({"prompt": [], "completion": CHAT}, "In query 1, 'prompt' is empty: expected a list of messages"),
        ({"prompt": 3, "completion": 4}, "In query 1, 'prompt' is a int: expected a list of messages"),
        ({"messages": []}, "In query 1, 'messages' is empty: expected a list of messages"),
        ({"messages": TEXT}, "In query 1, 'messages' is a str: expected a list of messages"),
        ({"messages": 3}, "In query 1, 'messages' is a int: expected a list of messages"),
        ({"messages": [CHAT[0], {"content": "x"}]}, "In query 1, message 1 of 'messages' has no role: expected"),
        ({"messages": [CHAT[0], None]}, "In query 1, message 1 of 'messages' is a NoneType: expected"),
        ({"messages": [{"role": "user"}, CHAT[1]]}, "In query 1, message 0 of 'messages' has no content, neither"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "In query 1, message 0 of 'messages' has no content, neither",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "In query 1, message 0 of 'messages' has a part that is no text",
        ),
        ([{"role": 3, "content": "x"}], "In query 1, message 0 of the chat has no role"),
        ([{"role": "user", "content": None}], "In query 1, message 0 of the chat has no content"),
        ({"messages": CHAT[:1]}, "Query 1 ends with a message of 'user'"),
        ({"messages": CHAT, "tools": "{"}, "Query 1 has 'tools' that are no JSON ("),
        ({"messages": CHAT, "tools": 3}, "Query 1 has 'tools' of type int: expected a list."),
        ({"messages": CHAT, "tools": '{"a": 1}'}, "Query 1 has 'tools' of type dict: expected a list."),
        ({"messages": CHAT, "chat_template_kwargs": [1]}, "Query 1 has 'chat_template_kwargs' of type list: expected"),
        (
            {"messages": CHAT, "chat_template_kwargs": {3: 1}},
            "Query 1 has 'chat_template_kwargs' of type dict: expected",
        ),
        ({"messages": CHAT, "chat_template_kwargs": {"tokenize": 1}}, "The tokenizer fails at query 1 (TypeError: "),
        ({"input_ids": [[5, 6]], "labels": 3}, "Query 1 is a batch of 1 rows, but its 'labels' has not one entry for"),
        (
            {"input_ids": [[5, 6]], "labels": [[5, 6]] * 2},
            "Query 1 is a batch of 1 rows, but its 'labels' has not one",
        ),
        ({"input_ids": [[5, 6]], "text": "x"}, "Query 1 is a batch of 1 rows, but its 'text' has not one entry for"),
        ({"input_ids": "text"}, "Query 1 has input_ids that are no "),
        ({"input_ids": {"a": 1}}, "Query 1 has input_ids that are no "),
    ],
    ids=lambda value: str(value)[:70],
)
def test_a_value_of_the_wrong_type_is_named(causal, tokenizer, query, reason):
    assert fails(query, causal, tokenizer).startswith(reason)


@pytest.mark.parametrize("label", [{"a": 1}, [[1], [1, 2]], object()], ids=["dict", "ragged", "object"])
def test_a_label_that_is_none_is_named(classifier, tokenizer, label):
    message = fails({"text": TEXT, "label": label}, classifier, tokenizer)
    assert message.startswith(f"Query 1 has a label of type {type(label).__name__} (")


def test_a_function_of_ones_own_takes_the_forms_of_language_models(causal, tokenizer):
    task = Custom(lambda model, batch: batch["input_ids"].float().sum(1))
    pair = query_features({"prompt": "The", "completion": " capital"}, causal, task, tokenizer)
    assert pair == query_features(("The", " capital"), causal, task, tokenizer)

"""Every form of a query, and what it is measured on."""

import pytest
import torch
from datasets import Dataset

from lorif_hf.tasks import task_of
from lorif_hf.tasks.query_forms import query_features


def _read(query, model, tokenizer):
    features = query_features(query, model, task_of(model), tokenizer)
    return [{key: torch.as_tensor(value).tolist() for key, value in feature.items()} for feature in features]


TEXT = "The capital of France is Paris"
CHAT = [{"role": "user", "content": "The capital of Italy?"}, {"role": "assistant", "content": "Rome"}]


def test_text(causal, tokenizer):
    assert _read(TEXT, causal, tokenizer) == [{"input_ids": tokenizer(TEXT)["input_ids"]}]


def test_text_with_special_tokens(causal, opening_tokenizer):
    (feature,) = _read(TEXT, causal, opening_tokenizer)
    assert feature["input_ids"][0] == opening_tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("The capital of France is", " Paris"),
        ("The capital of France is ", "Paris"),
        ("The capi", "tal of France"),  # the whole text has a token over the seam
        ("Which training ex", "amples made my model say this?"),
        ("x", "y"),
        ("caf\u00e9 ", "\u00e9t\u00e9 \U0001f642"),
    ],
)
@pytest.mark.parametrize("which", ["tokenizer", "opening_tokenizer", "closing_tokenizer"])
def test_the_labels_of_a_completion_mask_exactly_the_prompt(request, causal, which, prompt, completion):
    tokenizer = request.getfixturevalue(which)
    (feature,) = _read((prompt, completion), causal, tokenizer)
    ids, labels = feature["input_ids"], feature["labels"]
    assert len(ids) == len(labels)
    masked = labels.count(-100)
    assert labels == [-100] * masked + ids[masked:]
    assert tokenizer.decode(ids[:masked], skip_special_tokens=True) == prompt
    assert tokenizer.decode(ids[masked:], skip_special_tokens=True) == completion
    inner = ids[1:] if which == "opening_tokenizer" else ids[:-1]
    if which == "opening_tokenizer":
        assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in inner
    assert tokenizer.eos_token_id not in inner, "the text goes on after its end"


def test_a_completion_of_an_empty_prompt(causal, tokenizer):
    """The first token cannot be predicted, the others are measured."""
    (feature,) = _read(("", TEXT), causal, tokenizer)
    ids = tokenizer(TEXT)["input_ids"]
    assert feature == {"input_ids": ids, "labels": [-100, *ids[1:]]}


def test_an_empty_prompt_behind_a_bos_token(causal, opening_tokenizer):
    (feature,) = _read(("", TEXT), causal, opening_tokenizer)
    ids = opening_tokenizer(TEXT)["input_ids"]
    assert feature == {"input_ids": ids, "labels": [-100, *ids[1:]]}


def test_a_dict_of_prompt_and_completion(causal, tokenizer):
    query = {"prompt": "The capital of", "completion": " France", "id": 3}
    assert _read(query, causal, tokenizer) == _read(("The capital of", " France"), causal, tokenizer)


@pytest.mark.parametrize("wrap", [lambda chat: chat, lambda chat: [chat], lambda chat: {"messages": chat}])
def test_a_chat_is_measured_on_its_last_answer(causal, tokenizer, wrap):
    (feature,) = _read(wrap(CHAT), causal, tokenizer)
    ids, labels = feature["input_ids"], feature["labels"]
    assert tokenizer.decode(ids) == "<|user|>The capital of Italy?<eos><|assistant|>Rome<eos>"
    masked = labels.count(-100)
    assert tokenizer.decode(ids[:masked]) == "<|user|>The capital of Italy?<eos><|assistant|>"
    assert labels == [-100] * masked + ids[masked:]


def test_a_chat_of_several_turns(causal, tokenizer):
    chat = [{"role": "system", "content": "made"}, *CHAT, *CHAT]
    (feature,) = _read(chat, causal, tokenizer)
    measured = [token for token in feature["labels"] if token != -100]
    assert tokenizer.decode(measured) == "Rome<eos>"


@pytest.mark.parametrize("end", ["", "<eos>"])
def test_a_template_without_generation_prompt(causal, tokenizer, end):
    """The role's name is then part of the answer; a template may close the whole chat, so the start is no prefix."""
    kept = tokenizer.chat_template
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizer.chat_template = template + end
    try:
        (feature,) = _read(CHAT, causal, tokenizer)
    finally:
        tokenizer.chat_template = kept
    assert tokenizer.decode([token for token in feature["labels"] if token != -100]) == f"assistant: Rome\n{end}"


def test_two_chats(causal, tokenizer):
    assert _read([CHAT, CHAT], causal, tokenizer) == 2 * _read(CHAT, causal, tokenizer)


@pytest.mark.parametrize("make", [list, torch.tensor])
def test_a_feature(causal, make):
    feature = {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, 6, 7]}
    assert _read({key: make(value) for key, value in feature.items()}, causal, None) == [feature]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_loses_its_padding(causal, token_batch, side):
    batch = token_batch([5, 3], side=side)
    found = _read({**batch, "position_ids": batch["attention_mask"].cumsum(1), "nothing": None}, causal, None)
    assert [len(feature["input_ids"]) for feature in found] == [5, 3]
    for row, feature in enumerate(found):
        keep = batch["attention_mask"][row].bool()
        for key in ("input_ids", "labels", "attention_mask"):
            assert feature[key] == batch[key][row][keep].tolist()
        assert feature["position_ids"] == list(range(1, len(feature["input_ids"]) + 1)) and "nothing" not in feature


def test_a_batch_of_lists_and_a_batch_without_a_mask(causal):
    ids = [[5, 6, 7], [8, 9, 10]]
    assert _read({"input_ids": ids}, causal, None) == [{"input_ids": row} for row in ids]
    assert _read({"input_ids": torch.tensor(ids)}, causal, None) == [{"input_ids": row} for row in ids]


def test_a_tokenizers_output(causal, tokenizer):
    encoded = tokenizer([TEXT, "The capital"], padding=True, return_tensors="pt")
    found = _read(encoded, causal, None)
    assert [feature["input_ids"] for feature in found] == [tokenizer(t)["input_ids"] for t in (TEXT, "The capital")]


def test_a_batch_for_a_classifier(classifier, token_batch):
    found = _read(token_batch([4, 2], labels=[2, 0]), classifier, None)
    assert [(len(f["input_ids"]), f["labels"]) for f in found] == [(4, 2), (2, 0)]


def test_a_mixed_list(causal, tokenizer):
    mixed = [TEXT, ("The capital", " of"), CHAT, {"input_ids": [[1, 2], [3, 4]]}, {"text": TEXT}]
    found = _read(mixed, causal, tokenizer)
    assert [set(f) for f in found] == [
        {"input_ids"},
        {"input_ids", "labels"},
        {"input_ids", "labels"},
        *[{"input_ids"}] * 3,
    ]
    assert found == [f for item in mixed for f in _read(item, causal, tokenizer)]


def test_a_generator_and_a_tuple_of_texts(causal, tokenizer):
    texts = [TEXT, "The capital of", "Italy is Rome"]
    assert _read((text for text in texts), causal, tokenizer) == _read(texts, causal, tokenizer)
    assert _read(tuple(texts), causal, tokenizer) == _read(texts, causal, tokenizer)


@pytest.mark.parametrize(
    "rows",
    [
        {"text": [TEXT, "The capital"]},
        {"prompt": ["The", "The capital"], "completion": [" capital", " of"]},
        {"messages": [CHAT, CHAT]},
        {"input_ids": [[1, 2, 3], [4, 5]]},
    ],
    ids=["text", "completion", "chat", "tokens"],
)
def test_a_dataset(causal, tokenizer, rows):
    dataset = Dataset.from_dict(rows)
    found = _read(dataset, causal, tokenizer)
    assert len(found) == 2 and found == _read([dict(row) for row in dataset], causal, tokenizer)
    assert found[1] == _read(dataset[1], causal, tokenizer)[0]


@pytest.mark.parametrize("label", [1, "good"])
def test_a_text_with_its_label(classifier, tokenizer, label):
    expected = {"input_ids": tokenizer(TEXT)["input_ids"], "labels": 1}
    assert _read((TEXT, label), classifier, tokenizer) == [expected]
    assert _read([(TEXT, label), TEXT], classifier, tokenizer) == [expected, {"input_ids": expected["input_ids"]}]


def test_a_text_with_a_number(build, tokenizer):
    (feature,) = _read((TEXT, 0.5), build("bert-classifier", num_labels=1), tokenizer)
    assert feature["labels"] == 0.5


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize("make", [list, Dataset.from_list])
def test_rows_of_text_and_label(classifier, tokenizer, name, make):
    """As datasets of classifiers come; the label must not be lost to the model's own prediction."""
    found = _read(make([{"text": TEXT, name: 2}, {"text": "The", name: 0}]), classifier, tokenizer)
    assert [f.get("labels", f.get("label")) for f in found] == [2, 0]


def test_one_token_is_enough_for_a_classifier(classifier, tokenizer):
    assert _read({"input_ids": [3]}, classifier, tokenizer) == [{"input_ids": [3]}]

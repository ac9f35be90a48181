"""Columns: chosen by name or by what they are usually called, and made into what the model was trained on."""

import pytest
from datasets import Dataset
from terminal import train_tokenizer
from tiny import make_gpt2
from transformers import BertConfig, BertForSequenceClassification

from lorif_hf.commands.row_columns import Columns, TokenizedRows, chosen_columns, shown_rows
from lorif_hf.errors import DatasetError
from lorif_hf.tasks import task_of


CHAT = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


@pytest.fixture
def tokenizer():
    tokenizer = train_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def table(**columns):
    return Dataset.from_dict(columns)


def read(rows, columns, tokenizer, model=None, max_length=None):
    model = model or make_gpt2()
    tokenized = TokenizedRows(rows, columns, model, task_of(model), tokenizer, max_length)
    return [tokenized[number] for number in range(len(tokenized))]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text", "title"], Columns(text="text")),
        (["prompt", "completion", "text"], Columns(prompt="prompt", completion="completion")),
        (["messages", "prompt", "completion"], Columns(messages="messages")),
        (["sentence"], Columns(text="sentence")),
        (["input_ids", "text"], None),
    ],
)
def test_columns_with_usual_names_are_found(names, expected):
    assert chosen_columns(table(**{name: ["x"] for name in names}), Columns(), False) == expected


def test_columns_that_were_asked_for_come_first():
    rows = table(input_ids=[[1]], text=["x"], body=["y"], label=[0])
    assert chosen_columns(rows, Columns(text="body"), False) == Columns(text="body")
    assert chosen_columns(rows, Columns(text="body"), True) == Columns(text="body", label="label")


@pytest.mark.parametrize(
    ("names", "asked", "labelled", "message"),
    [
        (["a", "b"], Columns(), False, "Which column is the text? The training set has a, b: pass --text-column"),
        (["a"], Columns(text="text"), False, "has no column 'text': its columns are a."),
        (["a"], Columns(prompt="a"), False, "A prompt goes with its completion: pass --completion-column"),
        (["a", "b"], Columns(text="a", messages="b"), False, "Pass one of --text-column, --messages-column"),
        (["text"], Columns(), True, "is a classifier, and the training set has no label (text): pass --label-column"),
    ],
)
def test_what_is_not_clear_is_asked(names, asked, labelled, message):
    with pytest.raises(DatasetError) as caught:
        chosen_columns(table(**{name: ["x"] for name in names}), asked, labelled)
    assert message in str(caught.value)


def test_a_text_is_trained_on_whole_and_cut_where_the_training_cut_it(tokenizer):
    rows = table(text=["the cat sat on the mat", "a dog"])
    ids = tokenizer(rows["text"][:])["input_ids"]
    assert [row["input_ids"] for row in read(rows, Columns(text="text"), tokenizer)] == ids
    assert read(rows, Columns(text="text"), tokenizer, max_length=3)[0]["input_ids"] == ids[0][:3]
    long = table(text=["cat " * 40])  # the model has 16 positions
    assert len(read(long, Columns(text="text"), tokenizer)[0]["input_ids"]) == 16


def test_of_a_prompt_and_its_completion_the_completion_is_trained_on(tokenizer):
    rows = table(p=["the cat"], c=[" sat on"])
    (feature,) = read(rows, Columns(prompt="p", completion="c"), tokenizer)
    ids = tokenizer("the cat sat on")["input_ids"]
    assert feature == {"input_ids": ids, "labels": [-100, -100, *ids[2:]]}
    (cut,) = read(rows, Columns(prompt="p", completion="c"), tokenizer, max_length=3)
    assert cut == {"input_ids": ids[:3], "labels": [-100, -100, ids[2]]}
    (chat,) = read(table(p=[CHAT[:1]], c=[CHAT[1:]]), Columns(prompt="p", completion="c"), tokenizer)
    assert chat["labels"][:3] == [-100] * 3 and chat["labels"][-1] == chat["input_ids"][-1]


def test_a_chat_is_trained_on_whole(tokenizer):
    (feature,) = read(table(messages=[CHAT]), Columns(messages="messages"), tokenizer)
    assert feature == {"input_ids": tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]}


def test_labels_of_a_classifier_may_be_names(tokenizer):
    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.id2label, config.label2id = {0: "cats", 1: "dogs"}, {"cats": 0, "dogs": 1}
    model = BertForSequenceClassification(config)
    columns = Columns(text="text", label="label")
    rows = read(table(text=["the cat", "a dog"], label=["cats", "dogs"]), columns, tokenizer, model)
    assert [row["labels"] for row in rows] == [0, 1]
    with pytest.raises(DatasetError, match="Row 0 cannot be trained on: it has label 'birds'; the model's labels are"):
        read(table(text=["the cat"], label=["birds"]), columns, tokenizer, model)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (table(text=["x", None]), Columns(text="text"), "Row 1: column 'text' holds None, not a text."),
        (table(p=["x"], c=[3]), Columns(prompt="p", completion="c"), "Row 0: column 'c' holds 3, not a text."),
        (table(m=["x"]), Columns(messages="m"), "Row 0: column 'm' holds no chat, but 'x'."),
    ],
)
def test_a_row_that_is_none_is_named(tokenizer, rows, columns, message):
    with pytest.raises(DatasetError) as caught:
        read(rows, columns, tokenizer)
    assert message in str(caught.value)


def test_a_chat_without_a_template_is_told():
    with pytest.raises(DatasetError, match="Row 0 cannot be trained on: it is a chat, but the tokenizer has no chat"):
        read(table(messages=[CHAT]), Columns(messages="messages"), train_tokenizer())


def test_people_see_what_was_trained_on_beside_the_other_columns():
    rows = table(p=["a "], c=["b"], text=["other"], topic=["cats"])
    assert shown_rows(rows, Columns(prompt="p", completion="c")).to_list() == [{"topic": "cats", "text": "a b"}]
    assert shown_rows(rows, Columns(text="p")).to_list() == [{"text": "a ", "c": "b", "topic": "cats"}]
    assert shown_rows(rows, Columns(text="text")) is rows
    (chat,) = shown_rows(table(m=[CHAT]), Columns(messages="m"))
    assert chat == {"text": "user: the cat\nassistant: sat"}

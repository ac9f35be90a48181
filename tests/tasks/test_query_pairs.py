"""Two completions of a prompt: as TRL's Trainers make tokens of them, and what is missing of them is named."""

import pytest
from datasets import Dataset
from recordings import build
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from lorif_hf.errors import QueryError
from lorif_hf.tasks import task_of
from lorif_hf.tasks.query_forms import query_features, read_queries
from lorif_hf.tasks.query_pairs import sign_of


def chat(text, *more):
    return [{"role": "user", "content": text}, *({"role": "assistant", "content": answer} for answer in more)]


TEXTS = {"prompt": "The capital of France is", "chosen": " Paris", "rejected": " Rome and Italy"}
CHATS = {"prompt": chat("The capital of France?"), "chosen": chat("", "Paris")[1:], "rejected": chat("", "Rome")[1:]}
WHOLE = {"chosen": chat("The capital of France?", "Paris"), "rejected": chat("The capital of France?", "Rome")}


@pytest.fixture(scope="module")
def rewarding():
    return build("bert-classifier", num_labels=1)


def trained(trainer, arguments, model, row, tokenizer, path):
    """The row as the Trainer's own preparation makes it."""
    args = arguments(str(path), report_to="none", use_cpu=True, bf16=False, max_length=None)
    rows = Dataset.from_list([row])
    more = {"ref_model": build("llama")} if trainer is DPOTrainer else {}
    return trainer(model, args=args, train_dataset=rows, processing_class=tokenizer, **more).train_dataset[0]


@pytest.mark.parametrize("row", [TEXTS, CHATS, WHOLE], ids=["texts", "chats", "whole chats"])
def test_a_pair_has_the_tokens_that_dpo_trains_on(causal, tokenizer, tmp_path, row):
    (query,) = read_queries(row, causal, task_of(causal), tokenizer)
    prepared = trained(DPOTrainer, DPOConfig, causal, row, tokenizer, tmp_path)
    for feature, side in zip(query.features, ("chosen_ids", "rejected_ids"), strict=True):
        prompt, answer = prepared["prompt_ids"], prepared[side]
        assert feature["input_ids"] == prompt + answer
        assert feature["labels"] == [-100] * len(prompt) + answer
    assert read_queries(prepared, causal, task_of(causal), None) == [query]
    assert query.is_pair and query.sign == 1


@pytest.mark.parametrize("row", [TEXTS, WHOLE], ids=["texts", "whole chats"])
def test_a_pair_has_the_tokens_that_a_reward_model_is_trained_on(build, rewarding, tokenizer, tmp_path, row):
    (query,) = read_queries(row, rewarding, task_of(rewarding), tokenizer)
    prepared = trained(RewardTrainer, RewardConfig, build("llama-classifier", num_labels=1), row, tokenizer, tmp_path)
    assert list(query.features) == [{"input_ids": prepared[side]} for side in ("chosen_ids", "rejected_ids")]
    assert read_queries(prepared, rewarding, task_of(rewarding), None) == [query]


def test_tools_reach_both_sides(causal, tokenizer):
    kept = tokenizer.chat_template
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + kept
    try:
        (query,) = read_queries({**CHATS, "tools": [{"name": "x"}]}, causal, task_of(causal), tokenizer)
    finally:
        tokenizer.chat_template = kept
    assert all(tokenizer.decode(feature["input_ids"]).startswith('[{"name": "x"}]') for feature in query.features)


def test_one_completion_of_a_preference_is_a_query(causal, rewarding, tokenizer):
    row = {"prompt": "The capital", "completion": " of France"}
    (plain,) = query_features(row, causal, task_of(causal), tokenizer)
    (rated,) = read_queries({**row, "label": False}, causal, task_of(causal), tokenizer)
    assert rated.sign == -1 and not rated.is_pair
    assert rated.features[0]["input_ids"] == [*plain["input_ids"], tokenizer.eos_token_id]
    assert rated.features[0]["labels"] == [*plain["labels"], tokenizer.eos_token_id]
    (whole,) = query_features(row, rewarding, task_of(rewarding), tokenizer)
    assert whole == {"input_ids": tokenizer("The capital of France")["input_ids"]}


@pytest.mark.parametrize(
    "query, message",
    [
        ({"prompt": "a", "chosen": "b"}, "Query 1 has 'chosen' but no 'rejected': a preference has both. Of one com"),
        ({"rejected": "b"}, "Query 1 has 'rejected' but no 'chosen': a preference has both."),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "Query 1 has 'chosen' but no 'rejected'"),
        ({"prompt_ids": [1], "chosen_ids": [2]}, "Query 1 has 'chosen_ids' but no 'rejected_ids': a preference"),
        (
            {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": "x"},
            "Query 1 has 'rejected_ids' of type str: exp",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "The two completions of query 1 are the same tokens"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "In query 1, 'prompt' is a str: expected a list of messages"),
        ({"chosen": "b", "rejected": chat("a")}, "In query 1, 'chosen' is a str: expected a list of messages"),
        ({"prompt_ids": [1], "chosen_ids": [320], "rejected_ids": [2]}, "Query 1 holds token 320, the model knows"),
        ({"prompt_ids": [1, 2], "chosen_ids": [], "rejected_ids": [3]}, "Query 1 has no token to measure"),
        ({"prompt": "a", "completion": "b", "label": 3}, "Query 1 has label 3 beside a completion: expected True"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_missing_of_a_preference_is_named(causal, tokenizer, query, message):
    with pytest.raises(QueryError) as caught:
        read_queries(["The capital", query], causal, task_of(causal), tokenizer)
    assert str(caught.value).startswith(message)


def test_where_one_loss_is_asked_for_a_pair_is_refused(causal, tokenizer):
    for query in (TEXTS, {"prompt": "a", "completion": "b", "label": False}):
        with pytest.raises(QueryError, match="Query 0 is a preference, of which no loss alone is known here: pass"):
            query_features(query, causal, task_of(causal), tokenizer)


def test_a_classifier_of_several_classes_has_no_pairs(classifier, tokenizer):
    with pytest.raises(QueryError, match="Cannot read query 0, a dict with 'prompt', 'chosen', 'rejected'"):
        read_queries(TEXTS, classifier, task_of(classifier), tokenizer)


@pytest.mark.parametrize("label, sign", [(True, 1), (False, -1), (1, 1), (0, -1)])
def test_the_sign_of_a_label(label, sign):
    assert sign_of(label, 0) == sign

"""Rows that no model can take are named, with the column, before the model sees them."""

from types import SimpleNamespace

import pytest
import torch
from tiny import make_gpt2
from torch import nn
from transformers import BertConfig, BertModel, LEDConfig, LEDForConditionalGeneration

from lorif_hf.errors import DatasetError
from lorif_hf.recording import row_checks
from lorif_hf.tasks import DPO, CausalLM, MaskedLM, QuestionAnswering
from lorif_hf.tasks.custom import Custom
from lorif_hf.tasks.input_limits import InputLimits
from lorif_hf.tasks.sequence_classification import SequenceClassification


def classifier(num_labels=3, problem_type=None):
    model = nn.Module()
    model.config = SimpleNamespace(num_labels=num_labels, problem_type=problem_type)
    model.get_input_embeddings = lambda: nn.Embedding(50, 2)
    return model


def check(model, task, rows=(5, 6), **batch):
    row_checks.check_numbers(model, task, {key: torch.as_tensor(value) for key, value in batch.items()}, rows)


@pytest.mark.parametrize("task", [CausalLM(), SequenceClassification(), Custom(lambda model, batch: None)])
@pytest.mark.parametrize("value", [50, -1, -100])
def test_a_token_outside_the_vocabulary(task, value):
    message = rf"cannot take row 6 \({value} in column 'input_ids'\): a token is outside its vocabulary of 50 tokens"
    for ids in ([[1, 2], [3, value]], [[1, 49], [value, 0]]):
        with pytest.raises(DatasetError, match=message):
            check(make_gpt2(), task, input_ids=ids)
    check(make_gpt2(), task, input_ids=[[0, 49], [1, 2]])


def test_places_of_images_are_left_alone():
    check(make_gpt2(), CausalLM(), input_ids=[[1, -5]], pixel_values=torch.ones(1, 3, 2, 2), rows=[0])


@pytest.mark.parametrize("value", [50, -1, -99])
def test_a_label_outside_the_vocabulary(value):
    ids = [[1, 2], [3, 4]]
    with pytest.raises(DatasetError, match=rf"cannot take row 5 \({value} in column 'labels'\).*vocabulary of 50"):
        check(make_gpt2(), CausalLM(), input_ids=ids, labels=[[1, value], [-100, 2]])
    check(make_gpt2(), CausalLM(), input_ids=ids, labels=[[1, -100], [49, 0]])


@pytest.mark.parametrize("column", ["input_ids", "labels"])
def test_tokens_are_whole_numbers(column):
    batch = {"input_ids": [[1, 2]], "labels": [[1, 2]], column: [[1.0, 2.5]]}
    with pytest.raises(DatasetError, match=f"Row 3: column '{column}' holds float32 numbers, expected whole ones"):
        check(make_gpt2(), CausalLM(), rows=[3], **batch)


def test_labels_of_another_length():
    with pytest.raises(DatasetError, match=r"Rows 5, 6: input_ids \(2, 2\) and labels \(2, 3\) of the batch differ"):
        check(make_gpt2(), CausalLM(), input_ids=[[1, 2], [3, 4]], labels=[[1, 2, 3], [1, 2, 3]])


def test_a_batch_of_another_number_of_examples_names_all_its_rows():
    with pytest.raises(DatasetError, match=r"cannot take rows 5, 6 \(77 in column"):
        check(make_gpt2(), CausalLM(), input_ids=[[1, 2, 77]])


@pytest.mark.parametrize("value", [3, -1, 7])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_class_out_of_range(value, shape):
    labels = torch.tensor([0, value]).view(shape)
    with pytest.raises(
        DatasetError, match=rf"cannot take row 6 \({value} in column 'labels'\): its classes are 0 to 2"
    ):
        check(classifier(), SequenceClassification(), labels=labels)
    check(classifier(), SequenceClassification(), labels=[2, -100])


@pytest.mark.parametrize(
    ("problem", "labels", "message"),
    [
        (None, [[0, 1, 1], [1, 0, 0]], "3 labels a row .*takes 1 for problem_type 'single_label_classification'"),
        (None, [0.5, 1.0], "1 labels a row .*takes 3 for problem_type 'multi_label_classification' with num_labels=3"),
        ("single_label_classification", [0.0, 1.0], "column 'labels' holds float32 numbers, expected whole ones"),
        ("multi_label_classification", [[1.0, 0.0]], "2 labels a row .*takes 3"),
        ("regression", [1.0, 2.0], "1 labels a row .*takes 3 for problem_type 'regression'"),
    ],
)
def test_labels_that_do_not_fit_the_problem(problem, labels, message):
    with pytest.raises(DatasetError, match=message):
        check(classifier(problem_type=problem), SequenceClassification(), rows=[0] * len(labels), labels=labels)


@pytest.mark.parametrize(
    ("num_labels", "problem", "labels"),
    [
        (1, None, [0.5, 7.0]),
        (1, None, [3, 4]),
        (1, "regression", [[0.5], [1.0]]),
        (3, None, [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]),
        (3, "multi_label_classification", [[0, 1, 1], [1, 0, 0]]),
    ],
)
def test_labels_that_fit(num_labels, problem, labels):
    check(classifier(num_labels, problem), SequenceClassification(), labels=labels)


def test_models_without_tokens_or_configs():
    check(nn.Linear(2, 2), Custom(lambda model, batch: None), input_ids=[[-5, 1000]])
    check(nn.Linear(2, 2), SequenceClassification(), labels=[9, 9])


NAMES = {"input_ids", "labels", "token_type_ids"}


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (None, r"Row 7 is None: expected a dict of columns by name, such as \{'input_ids'"),
        ((1, 2), "Row 7 is a tuple: expected a dict of columns"),
        ("a text", "Row 7 is a str: expected a dict"),
        (torch.ones(2), "Row 7 is a Tensor: expected a dict"),
        ({"input_ids": None, "labels": [1]}, r"Row 7 has no value in column 'input_ids' \(None\), and row 0 has one"),
        ({"input_ids": [1]}, r"Row 7 has no value in column 'labels'.*dataset.filter\(lambda row: row\['labels'\]"),
        ({"input_ids": [1], "labels": [1], "token_type_ids": [0]}, "Row 0 has no value in column 'token_type_ids'"),
        ({"input_ids": [1, 2], "labels": [1], "attention_mask": [1]}, "Row 7 has 2 tokens .* 1 values in column 'att"),
    ],
    ids=repr,
)
def test_rows_unlike_the_first(feature, message):
    with pytest.raises(DatasetError, match=message):
        row_checks.check_features([{"input_ids": [1], "labels": [1]}, feature], [6, 7], NAMES, {"input_ids", "labels"})


def test_rows_like_the_first():
    rows = [{"input_ids": [1], "labels": [1], "text": None}, {"labels": [1], "input_ids": [1], "attention_mask": [1]}]
    row_checks.check_features(rows, [0, 1], NAMES, {"input_ids", "labels"})


def test_every_token_has_its_label():
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": torch.ones(3), "labels": [1]}]
    with pytest.raises(DatasetError, match="Row 9 has 3 tokens in column 'input_ids' and 1 values in column 'labels'"):
        row_checks.check_token_labels(rows, [8, 9])
    row_checks.check_token_labels([{"input_ids": [1]}, {"labels": [1, 2]}, {"input_ids": [1], "labels": 3}], [1, 2, 3])


def test_a_column_that_is_no_tensor_is_named():
    rows = [{"input_ids": [1], "label": "good"}, {"input_ids": [1], "label": "bad"}]
    with pytest.raises(DatasetError, match="Column 'label' of row 2 holds 'good', which cannot become a tensor"):
        row_checks.check_kept(rows, [2, 3], {"input_ids", "label"}, {"input_ids": torch.ones(1)})
    row_checks.check_kept([{"label": 1}], [2], {"label"}, {"labels": torch.ones(1)})


def collate(features):
    if any(feature == 3 for feature in features):
        raise KeyError("input_ids")
    if len(features) > 2:
        raise ValueError("too many")
    return {"x": torch.tensor(features)}


def test_the_row_that_a_collator_fails_at_is_named():
    with pytest.raises(DatasetError, match=r"Row 11 could not be collated by collate \(KeyError: 'input_ids'\)"):
        row_checks.collated(collate, [1, 3], [10, 11])
    with pytest.raises(DatasetError, match=r"Rows 10, 11, 12 could not be collated by collate \(ValueError: too many"):
        row_checks.collated(collate, [1, 2, 1], [10, 11, 12])
    with pytest.raises(DatasetError, match="The data_collator returned a list: expected a dict of tensors"):
        row_checks.collated(lambda features: [1], [1], [0])
    assert row_checks.collated(collate, [1, 2], [0, 1])["x"].tolist() == [1, 2]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("MPS backend out of memory")])
def test_a_lack_of_memory_in_a_collator_passes(error):
    def fails(features):
        raise error

    with pytest.raises(type(error)):
        row_checks.collated(fails, [1], [0])


def test_a_preference_has_both_sides():
    names = ("chosen_ids", "rejected_ids")
    whole = {"chosen_ids": [1], "rejected_ids": torch.tensor([2]), "label": False}
    row_checks.check_sides([whole, {"chosen": "a"}, "text"], [0, 1, 2], names)  # of another form: the collator's
    row_checks.check_sides([whole], [0], (*names, "label"))
    for value, what in ((None, "nothing"), ([], "no token"), (torch.tensor([]), "no token")):
        with pytest.raises(DatasetError, match=rf"Row 7 has {what} in column 'rejected_ids': .* Leave such rows out"):
            row_checks.check_sides([whole, whole | {"rejected_ids": value}], [3, 7], names)
    with pytest.raises(DatasetError, match="Row 3 has nothing in column 'rejected_ids'"):
        row_checks.check_sides([{"chosen_ids": [1]}], [3], names)


def test_what_a_task_is_trained_on():
    batch = {"input_ids": torch.ones(1, 2), "start_positions": torch.tensor([0])}
    with pytest.raises(
        DatasetError, match="no end_positions, which objective 'question-answering' needs; they have inp"
    ):
        row_checks.check_labelled(QuestionAnswering(), batch)
    with pytest.raises(DatasetError, match="The rows have no labels, and nothing masks them: pass the data_collator"):
        row_checks.check_labelled(MaskedLM(), batch)
    row_checks.check_labelled(QuestionAnswering(), batch | {"end_positions": torch.tensor([1])})
    row_checks.check_labelled(DPO(), batch)


def check_lengths(rows=(5, 6), model=None, **batch):
    limits = InputLimits(make_gpt2() if model is None else model)
    row_checks.check_lengths(limits, {key: torch.as_tensor(value) for key, value in batch.items()}, rows)


def test_a_row_longer_than_the_positions_is_named():
    ids, mask = torch.ones(2, 18, dtype=torch.int64), torch.ones(2, 18, dtype=torch.int64)
    mask[0, 16:] = 0
    message = r"cannot take row 6 \(18 tokens in column 'input_ids'\): it has positions for 16. Truncate the rows"
    with pytest.raises(DatasetError, match=message):
        check_lengths(input_ids=ids, attention_mask=mask)
    with pytest.raises(DatasetError, match=r"cannot take row 5 \(18 tokens"):
        check_lengths(input_ids=ids)
    with pytest.raises(DatasetError, match=r"cannot take rows 5, 6 \(18 tokens"):  # of another number of examples
        check_lengths(input_ids=ids[:1])
    check_lengths(input_ids=ids[:, :16])
    check_lengths(input_ids=ids, position_ids=torch.arange(18).expand(2, -1) % 9)  # documents, each from 0
    check_lengths(input_ids=ids, attention_mask=mask[:1].expand(2, -1))  # as RoBERTa's, which does not count padding


def test_an_encoder_takes_as_many_tokens_as_it_has_positions():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "attention_window": 4}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    lengths = {"max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 8}
    led = LEDForConditionalGeneration(LEDConfig(**sizes, **heads, **lengths))
    check_lengths(model=led, input_ids=torch.ones(2, 32, dtype=torch.int64))
    with pytest.raises(DatasetError, match=r"row 5 \(33 tokens in column 'input_ids'\): it has positions for 32"):
        check_lengths(model=led, input_ids=torch.ones(2, 33, dtype=torch.int64))


def test_a_token_type_that_the_model_does_not_know():
    bert = BertModel(BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    ids = torch.ones(2, 3, dtype=torch.int64)
    check_lengths(model=bert, input_ids=ids, token_type_ids=[[0, 1, 1], [0, 0, 0]])
    with pytest.raises(DatasetError, match=r"row 6 \(2 in column 'token_type_ids'\): it knows 2 types of tokens"):
        check_lengths(model=bert, input_ids=ids, token_type_ids=[[0, 1, 1], [0, 0, 2]])

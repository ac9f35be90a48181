"""Sequence to sequence: every index against autograd, row by row."""

import pytest
import torch
from every_task import assert_recorded, bart, batch_of, index_of, t5, token_sum, translations
from kinds import VOCABULARY
from transformers import (
    BertConfig,
    DataCollatorForSeq2Seq,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    MarianConfig,
    MarianMTModel,
)
from truth import relative_error

from lorif_hf.errors import DatasetError, QueryError
from lorif_hf.tasks import Seq2Seq, task_of


def marian():
    torch.manual_seed(0)
    halves = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 24))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    config = MarianConfig(vocab_size=VOCABULARY, d_model=16, **halves, **heads, pad_token_id=0, init_std=0.2)
    config.decoder_start_token_id = config.eos_token_id = 0
    return MarianMTModel(config)


def two_berts():
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    halves = [BertConfig(**sizes, num_attention_heads=2, initializer_range=0.2) for _ in range(2)]
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    return EncoderDecoderModel(config)


@pytest.mark.parametrize("make", [t5, bart, marian, two_berts])
def test_an_index_of_translations(tmp_path, make):
    model, rows = make(), translations()
    index = index_of(model, rows, tmp_path)
    assert_recorded(index, model, rows, "seq2seq", token_sum)
    assert relative_error(index, model, rows, token_sum) < 1e-5
    assert [example["num_tokens"] for example in index.examples([0, 1])] == [9, 8]  # of source and target


def test_through_the_collator_of_its_trainer(tmp_path, tokenizer):
    model, rows = t5(), translations()
    rows[1]["labels"][2] = -100
    collate = DataCollatorForSeq2Seq(tokenizer, model)
    index = index_of(model, rows, tmp_path, data_collator=collate)
    assert_recorded(index, model, rows, "seq2seq", token_sum)


def test_source_and_target_are_shown_and_asked(tmp_path, tokenizer):
    model = t5()
    model.resize_token_embeddings(len(tokenizer))
    pairs = [("The capital", "of France"), ("is Paris", "and Rome"), ("Which model", "says this")]
    rows = [dict(tokenizer(source, text_target=target)) for source, target in pairs]
    index = index_of(model, rows, tmp_path, processing_class=tokenizer)
    assert index.examples([0])[0]["text"] == "input: The capital\nlabels: of France"
    expected = index.scores(model, rows)
    assert int(expected[1].argmax()) == 1
    torch.testing.assert_close(index.scores(model, pairs), expected)
    for names in (("source", "target"), ("text", "target"), ("input", "target"), ("document", "summary")):
        torch.testing.assert_close(
            index.scores(model, [dict(zip(names, pair, strict=True)) for pair in pairs]), expected
        )
    again = type(index).from_pretrained(tmp_path / "index")  # its tokenizer runs in a process of its own
    torch.testing.assert_close(again.scores(model, pairs), expected)


def test_queries_and_rows_without_a_target(tmp_path, tokenizer):
    task = task_of(t5())
    assert isinstance(task, Seq2Seq)
    with pytest.raises(QueryError, match=r"Query 1 has a source alone: .* Pass \(source, target\)"):
        task.check_query({"input_ids": [1, 2]}, 1)
    with pytest.raises(QueryError, match="Query 1 has nothing to measure: all its labels are -100"):
        task.check_query({"input_ids": [1, 2], "labels": [-100]}, 1)
    with pytest.raises(QueryError, match=r"Query 0 pairs a text with 3: expected a \(source, target\) pair"):
        task.query_pair(None, "The house", 3, 0)
    with pytest.raises(DatasetError, match="The batches have no labels, which objective 'seq2seq' needs"):
        index_of(t5(), [{"input_ids": row["input_ids"]} for row in translations()], tmp_path)
    rows = translations()
    rows[2]["labels"][0] = VOCABULARY
    with pytest.raises(DatasetError, match=rf"cannot take row 2 \({VOCABULARY} in column 'labels'\)"):
        index_of(t5(), rows, tmp_path)


def test_margins_are_those_of_the_targets_tokens():
    model, row = t5().eval(), translations()[0]
    logits, labels = task_of(model).predictions(model, batch_of(row))
    assert logits.shape == (1, len(row["labels"]), VOCABULARY) and labels.tolist() == [row["labels"]]
    loss = -logits.log_softmax(-1)[0].gather(1, labels[0].unsqueeze(1)).sum()
    torch.testing.assert_close(loss, token_sum(model, row))

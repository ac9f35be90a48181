"""Masked language models: masks drawn once per row, losses by the model's own, indices by autograd."""

import pytest
import torch
from every_task import LAYERS, assert_recorded, index_of, token_sum
from kinds import SIZES, bert, rows_of
from tiny import make_rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)
from truth import relative_error

from lorif_hf.errors import DatasetError, QueryError
from lorif_hf.recording.rows import TrainingRows
from lorif_hf.tasks import MaskedLM, task_of


WIDE = {**SIZES, "vocab_size": 50}


def deberta():
    torch.manual_seed(0)
    apart = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True}
    return DebertaV2ForMaskedLM(DebertaV2Config(**WIDE, **apart, norm_rel_ebd="layer_norm", initializer_range=0.2))


def modern():
    torch.manual_seed(0)
    special = {"bos_token_id": 3, "eos_token_id": 1, "cls_token_id": 3, "sep_token_id": 1}
    return ModernBertForMaskedLM(ModernBertConfig(**WIDE, **special, initializer_range=0.2))


def roberta():
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=50, **LAYERS, max_position_embeddings=40, pad_token_id=0, initializer_range=0.2)
    return RobertaForMaskedLM(config)


def words():
    names = {0: "<pad>", 2: "<mask>"}
    tokenizer = Tokenizer(models.WordLevel({names.get(i, str(i)): i for i in range(50)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<pad>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def masking(**options):
    return DataCollatorForLanguageModeling(words(), mlm_probability=0.4, **options)


def masked(model, collate):
    """The rows of `make_rows` with the masks that the library draws for them."""
    rows = TrainingRows(make_rows(10), model, MaskedLM(), data_collator=collate)
    return [{key: value[0].tolist() for key, value in rows.batch([row]).items()} for row in range(10)]


def own_sum(model, row):
    return token_sum(model, row) if set(row["labels"]) != {-100} else sum(p.sum() * 0 for p in model.parameters())


@pytest.mark.parametrize("make", [bert, roberta, modern, deberta], ids=["BERT", "RoBERTa", "ModernBERT", "DeBERTa-v3"])
def test_an_index_of_masked_rows(tmp_path, make):
    model = bert(BertForMaskedLM) if make is bert else make()
    if make is bert:
        model.resize_token_embeddings(50)
    index = index_of(model, make_rows(10), tmp_path, data_collator=masking())
    rows = masked(model, masking())
    # DeBERTa's keys are also those of relative positions, which all rows of a batch share: there rows go alone.
    together = make is not deberta
    assert_recorded(index, model, rows, "masked-lm" if together else "model", own_sum, together)


@pytest.mark.parametrize("options", [{}, {"seed": 3}, {"pad_to_multiple_of": 8}, {"whole_word_mask": True}], ids=str)
def test_masks_are_drawn_once_per_row(options):
    collate, model, dataset = masking(**options), roberta(), make_rows(10)
    if "whole_word_mask" in options:  # words of one token each
        dataset = dataset.map(
            lambda row: {"offset_mapping": [[3 * i, 3 * i + 2] for i in range(len(row["input_ids"]))]}
        )
    rows = TrainingRows(dataset, model, MaskedLM(), data_collator=collate)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert rows.draws_random and torch.equal(torch.get_rng_state(), state)
    whole, turned = rows.batch(list(range(10))), rows.batch(list(range(9, -1, -1)))
    again = TrainingRows(dataset, model, MaskedLM(), data_collator=masking(**options))
    for row in range(10):
        alone = again.batch([row])
        for key, value in alone.items():
            width = value.shape[1]
            assert torch.equal(whole[key][row, :width], value[0]) and torch.equal(
                turned[key][9 - row, :width], value[0]
            )
    assert bool((whole["labels"] != -100).any(dim=1).sum() > 5)
    places = {tuple((whole["labels"][row] != -100).nonzero()[:, 0].tolist()) for row in range(10)}
    assert len(places) > 5  # not the same masks in each row
    assert torch.equal(whole["attention_mask"].sum(dim=1), (whole["input_ids"] != 0).sum(dim=1))


def test_batch_sizes_and_passes_see_the_same_masks(tmp_path):
    model = roberta()
    one = index_of(model, make_rows(10), tmp_path, data_collator=masking())
    torch.manual_seed(7)
    for size in (1, 3):
        other = type(one).build(
            model, make_rows(10), tmp_path / str(size), config=one.config, data_collator=masking(), batch_size=size
        )
        torch.testing.assert_close(other.self_influence(), one.self_influence(), rtol=1e-5, atol=0)


def test_rows_with_their_own_masks_are_taken_as_they_are(tmp_path):
    model, rows = bert(BertForMaskedLM), rows_of()
    for row in rows:
        row["labels"] = [-100, *row["input_ids"][1:]]
    index = index_of(model, rows, tmp_path)
    assert_recorded(index, model, rows, "masked-lm", token_sum)
    assert relative_error(index, model, rows, token_sum) < 1e-5


def test_rows_that_nothing_masks(tmp_path):
    with pytest.raises(
        DatasetError, match=r"nothing masks them: pass .*, DataCollatorForLanguageModeling\(tokenizer\)"
    ):
        index_of(bert(BertForMaskedLM), rows_of(), tmp_path)


def test_a_text_with_masks_and_what_stands_behind_them(tmp_path):
    model, tokenizer = roberta(), words()
    index = index_of(model, make_rows(10), tmp_path, data_collator=masking(), processing_class=tokenizer)
    feature = {"input_ids": [7, 2, 9, 2], "labels": [-100, 11, -100, 12]}
    expected = index.scores(model, [feature])
    asked = [("7 <mask> 9 <mask>", "11 12"), {"text": "7 <mask> 9 <mask>", "target": "11 12"}]
    torch.testing.assert_close(index.scores(model, asked), expected.expand(2, -1))
    again = type(index).from_pretrained(tmp_path / "index")
    torch.testing.assert_close(again.scores(model, asked[:1]), expected)
    with pytest.raises(QueryError, match="Query 0 has 1 masks in its text, and its answer has 2 tokens"):
        index.scores(model, [("7 <mask> 9", "11 12")])
    with pytest.raises(QueryError, match="Query 0 has 0 masks in its text"):
        index.scores(model, [("7 9", "11")])
    with pytest.raises(QueryError, match=r"Query 0 has nothing to measure: .* Pass \(text with mask tokens, answer\)"):
        index.scores(model, "7 <mask> 9")


def test_queries_that_mean_nothing():
    task = task_of(roberta())
    with pytest.raises(QueryError, match=r"pairs a text with 3: expected a \(masked text, answer\) pair"):
        task.query_pair(None, "7 2", 3, 0)
    with pytest.raises(QueryError, match="Query 0 has 2 tokens, but 1 labels: expected as many"):
        task.check_query({"input_ids": [1, 2], "labels": [1]}, 0)
    with pytest.raises(QueryError, match="Query 0 has nothing to measure: all its labels are -100"):
        task.check_query({"input_ids": [1, 2], "labels": [-100, -100]}, 0)

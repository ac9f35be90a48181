"""Which documents a training packed, by each trace that it may have left; and plain rows stay plain."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, DataCollatorWithFlattening

from lorif_hf.errors import DatasetError
from lorif_hf.recording.document_search import Packing, document_collator, find_documents, packing_of


TOKENIZER = SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=0)
IDS = [[11, 12, 13, 14, 15], [16, 17, 18, 19]]
PLACES = [(0, 0, 2), (0, 2, 5), (1, 0, 4)]


def found(rows, collate=None, packing=None, tokenizer=TOKENIZER):
    documents = find_documents(rows, len(rows), collate, tokenizer, packing)
    if documents is None:
        return None
    places = zip(documents.source_rows.tolist(), documents.starts.tolist(), documents.stops.tolist(), strict=True)
    return list(places)


@pytest.mark.parametrize(
    "name, values",
    [
        ("seq_lengths", [[2, 3], [4]]),
        ("position_ids", [[0, 1, 0, 1, 2], [0, 1, 2, 3]]),
        ("position_ids", [[2, 3, 2, 3, 4], [2, 3, 4, 5]]),
        ("cu_seq_lens_q", [[0, 2, 5], [0, 4]]),
        ("cu_seqlens", [[2, 5], [4]]),
        ("seq_idx", [[0, 0, 1, 1, 1], [0, 0, 0, 0]]),
    ],
)
@pytest.mark.parametrize("kind", ["datasets", "torch", "list"])
def test_a_column_tells(name, values, kind):
    rows = Dataset.from_dict({"input_ids": IDS, name: values, "text": ["a", "b"]})
    rows = {"datasets": rows, "torch": rows.with_format("torch"), "list": list(rows)}[kind]
    assert found(rows) == PLACES
    assert document_collator(rows, TOKENIZER)([rows[0]])["position_ids"][0, 2] in (0, 2)


def test_packed_rows_of_one_document_each_are_documents_only_where_lengths_say_so():
    assert found([{"input_ids": [3, 4], "seq_lengths": [2]}]) == [(0, 0, 2)]
    assert found([{"input_ids": [3, 4], "seq_lengths": [1, 1]}, {"input_ids": [], "seq_lengths": []}])[1:] == [
        (0, 1, 2)
    ]
    assert found([{"input_ids": [3, 4], "position_ids": [0, 1]}]) is None
    assert found([{"input_ids": [3, 4], "seq_lengths": 2}]) is None  # a number of the user's
    assert found([{"pixel_values": [3, 4]}]) is None and found([[1, 2]]) is None


def test_padding_is_no_document():
    ids = [[5, 6, 7, 8, 0, 0], [5, 6, 7, 8, 9, 0]]
    rows = [
        {"input_ids": i, "position_ids": p} for i, p in zip(ids, [[0, 1, 0, 1, 0, 0], [0, 1, 2, 3, 4, 0]], strict=True)
    ]
    assert found(rows) == [(0, 0, 2), (0, 2, 4), (1, 0, 5)]
    padded = [{"input_ids": [5, 6, 7, 0], "position_ids": [0, 1, 2, 1], "attention_mask": [1, 1, 1, 0]}]
    assert found(padded) is None
    left = [{"input_ids": [0, 0, 5, 6, 7], "position_ids": [1, 1, 0, 1, 0], "attention_mask": [0, 0, 1, 1, 1]}]
    assert found(left) == [(0, 2, 4), (0, 4, 5)]
    numbered = [{"input_ids": [5, 6, 7, 8], "position_ids": [0, 1, 2, 3], "attention_mask": [1, 1, 2, 2]}]
    assert found(numbered) == [(0, 0, 2), (0, 2, 4)]
    assert document_collator(numbered, TOKENIZER) is None  # a mask of their own lets documents see each other


@pytest.mark.parametrize(
    "row, problem",
    [
        ({"input_ids": [3, 4], "seq_lengths": [1, 2]}, "they add up to 3, and the row has 2 tokens|they end at"),
        ({"input_ids": [3, 4], "seq_lengths": [1]}, "they add up to 1, and the row has 2 tokens"),
        ({"input_ids": [3, 4], "seq_lengths": [3, -1]}, "they end at"),
        ({"input_ids": [3, 4], "seq_lengths": None}, "it has no value there"),
    ],
)
def test_lengths_of_other_tokens_are_refused(row, problem):
    rows = [{"input_ids": [3, 4], "seq_lengths": [2]}, row]
    with pytest.raises(DatasetError, match=f"Row 1 of the dataset has documents in column 'seq_lengths'.*({problem})"):
        found(rows)


def collated(with_lengths):
    def collate(features):
        ids = torch.tensor([[token for feature in features for token in feature["input_ids"]]])
        ends, positions = [0], []
        for feature in features:
            for size in feature["sizes"]:
                ends.append(ends[-1] + size)
                positions += range(size)
        told = {"cu_seq_lens_q": torch.tensor(ends)} if with_lengths else {"position_ids": torch.tensor([positions])}
        return {"input_ids": ids, "labels": ids, **told}

    return collate


@pytest.mark.parametrize("with_lengths", [True, False])
def test_the_batches_of_the_collator_tell(with_lengths):
    rows = Dataset.from_dict({"input_ids": IDS, "sizes": [[2, 3], [4]]})
    assert found(rows, collated(with_lengths)) == PLACES


def test_plain_rows_stay_plain(tokenizer):
    rows = [{"input_ids": ids} for ids in IDS]
    assert found(rows) is None and found(rows, DataCollatorWithFlattening(return_flash_attn_kwargs=True)) is None
    assert found(rows, DataCollatorForLanguageModeling(tokenizer, mlm=False)) is None

    def fails(features):
        raise ValueError("no")

    assert found(rows, fails) is None  # it is told where the row is recorded


def test_how_a_trainer_packs():
    assert packing_of(None) is None and packing_of(SimpleNamespace(args=SimpleNamespace())) is None
    args = SimpleNamespace(packing=True, max_length=7, shuffle_dataset=True, dataset_kwargs=None)
    assert packing_of(SimpleNamespace(args=args)) == Packing(7, True)
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    assert packing_of(SimpleNamespace(args=args)) is None


def numbers(rows, packing, tokenizer=TOKENIZER):
    return find_documents(rows, len(rows), None, tokenizer, packing).table(0, 99)["document"]


def test_blocks_are_cut_where_a_document_ends():
    rows = [{"input_ids": ids} for ids in ([5, 6, 2, 7], [8, 9, 9, 9], [9, 2, 5, 2], [6, 2, 2, 7], [8, 2], [4, 4])]
    places = [(0, 0, 3), (0, 3, 4), (1, 0, 4), (2, 0, 2), (2, 2, 4), (3, 0, 3), (3, 3, 4), (4, 0, 2), (5, 0, 2)]
    assert found(rows, packing=Packing(4)) == places
    # The second goes on over three blocks; after a block that is no whole one another begins.
    assert numbers(rows, Packing(4)) == [0, 1, 1, 1, 2, 3, 4, 4, 5]
    # In another order nobody knows to which document the first piece of a block belongs.
    assert numbers(rows, Packing(4, shuffled=True)) == [None, 0, None, None, 1, None, 2, None, None]


def test_blocks_are_cut_where_a_document_begins():
    rows = [{"input_ids": ids} for ids in ([1, 5, 2, 7], [8, 1, 9, 2], [1, 5, 5, 5])]
    assert found(rows, packing=Packing(4)) == [(0, 0, 4), (1, 0, 1), (1, 1, 4), (2, 0, 4)]
    assert numbers(rows, Packing(4)) == [0, 0, 1, 2]
    both = SimpleNamespace(bos_token_id=2, eos_token_id=2)
    assert found(rows, packing=Packing(4), tokenizer=both)[:2] == [(0, 0, 3), (0, 3, 4)]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, None, SimpleNamespace(eos_token_id=None)])
def test_packed_rows_without_a_trace_are_refused(tokenizer):
    with pytest.raises(DatasetError, match="nothing tells the documents in them apart.*packing_strategy='bfd'"):
        found([{"input_ids": ids} for ids in IDS], packing=Packing(5), tokenizer=tokenizer)

"""The documents of packed rows: where they are, in the dataset and in whatever a collator makes of it."""

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithFlattening

from lorif_hf.errors import DatasetError
from lorif_hf.recording.documents import DocumentCollator, DocumentRows, Documents, flattened, places_of


ROWS = [[(0, 2), (2, 5)], [(0, 4)], [(0, 1), (1, 2), (2, 4)]]
DATASET = [
    {"input_ids": [1, 2, 3, 4, 5], "labels": [1, 2, -100, 4, 5], "text": "abcde", "n": 3},
    {"input_ids": [6, 7, 8, 9], "labels": [6, 7, 8, 9], "text": "fghi", "n": 4},
    {"input_ids": [10, 11, 12, 13], "labels": [10, 11, 12, 13], "text": "jklm", "n": 5},
]


@pytest.fixture
def documents():
    return Documents.of(enumerate(ROWS))


def below(features):
    """Padded on the right."""
    width = max(len(feature["input_ids"]) for feature in features)
    ids = [feature["input_ids"] + [0] * (width - len(feature["input_ids"])) for feature in features]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}


def below_left(features):
    """Padded on the left."""
    width = max(len(feature["input_ids"]) for feature in features)
    ids = [[0] * (width - len(feature["input_ids"])) + feature["input_ids"] for feature in features]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}


def behind(features):
    """One after another, with padding at the end."""
    ids = [token for feature in features for token in feature["input_ids"]] + [0, 0, 0]
    return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])}


def test_where_documents_are(documents):
    assert len(documents) == 6 and documents.lengths.tolist() == [2, 3, 4, 1, 1, 2]
    assert documents.by_source([4, 1, 3]) == {2: [4, 3], 0: [1]}
    assert documents.following().tolist() == [1, 4, 5]
    assert documents.table(1, 3) == {
        "source_row": [0, 1],
        "start": [2, 0],
        "stop": [5, 4],
        "document": [None, None],
    }
    known = Documents.of(enumerate(ROWS), [0, 1, 1, -1, 2, 3])
    assert known.table(0, 4)["document"] == [0, 1, 1, None] and not known.told and documents.told
    assert len({documents.digest(), known.digest(), Documents.of(enumerate(ROWS[:2])).digest()}) == 3


def test_a_sample_is_of_whole_rows():
    documents = Documents.of((row, [(i, i + 1) for i in range(1 + row % 7)]) for row in range(100))
    for count in (1, 20, 200, 1000):
        sample = documents.sample(count)
        held = {int(documents.source_rows[row]) for row in sample}
        assert sample == [row for row in range(len(documents)) if int(documents.source_rows[row]) in held]
        assert abs(len(sample) - min(count, len(documents))) <= 7


@pytest.mark.parametrize("collate", [below, below_left, behind])
def test_documents_are_found_in_a_batch(documents, collate):
    chosen = [5, 1, 2, 4]
    features = [DATASET[row] for row in documents.by_source(chosen)]
    batch = collate(features)
    segments = documents.segments(chosen, features, batch)
    assert segments.shape == batch["input_ids"].shape
    held = [batch["input_ids"][s, a:b].tolist() for s, a, b in segments.places]
    assert held == [[12, 13], [3, 4, 5], [6, 7, 8, 9], [11]]


def test_rows_that_are_not_in_the_batch(documents):
    features = DATASET[:2]
    for wrong in (
        {"input_ids": torch.tensor([[1, 2, 3, 4, 9], [6, 7, 8, 9, 0]])},
        {"input_ids": torch.tensor([1, 2])},
        {"pixel_values": torch.ones(2, 3)},
        {"input_ids": torch.ones(3, 5, dtype=torch.long)},
    ):
        assert places_of([np.array(f["input_ids"]) for f in features], wrong) is None
        with pytest.raises(DatasetError, match="Rows 0, 1 of the dataset, packed, cannot be found in what the coll"):
            documents.segments([0, 2], features, {"labels": torch.ones(2, 5), **wrong})
    with pytest.raises(DatasetError, match="and a label for each token.*or add a 'labels' column"):
        documents.segments([0, 2], features, {"input_ids": below(features)["input_ids"]})
    with pytest.raises(DatasetError, match="Row 0 of the dataset has 3 tokens .* its documents reach up to 5"):
        documents.segments([0], [{"input_ids": [1, 2, 3]}], {})


def test_rows_one_after_another():
    plain = [{"input_ids": [1, 2]}, {"input_ids": [3, 4, 5]}]
    assert flattened(plain, DataCollatorWithFlattening()(plain)).places == [(0, 0, 2), (0, 2, 5)]
    assert flattened(plain, below(plain)) is None and flattened(plain[:1], below(plain[:1])) is None
    assert flattened([{"pixel_values": 1}] * 2, {"input_ids": torch.ones(1, 4)}) is None


def test_a_packed_dataset_as_its_documents(documents):
    rows = DocumentRows(DATASET, documents)
    assert len(rows) == 6 and rows[1] == {"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}
    assert rows[2]["input_ids"] == [6, 7, 8, 9] and rows[5]["labels"] == [12, 13]


def test_positions_begin_anew_with_each_document():
    collate = DocumentCollator(lambda feature: feature["pieces"])
    features = [{**row, "pieces": pieces} for row, pieces in zip(DATASET, ROWS, strict=True)]
    batch = collate(features[:1] + features[2:])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 10, 11, 12, 13]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 2, -100, 4, 5, -100, -100, -100, 13]]
    own = collate([{"input_ids": [1, 2, 3], "position_ids": [2, 3, 2], "pieces": [(0, 2), (2, 3)]}])
    assert own["position_ids"].tolist() == [[2, 3, 2]] and own["labels"].tolist() == [[-100, 2, -100]]
    assert DATASET[0]["labels"] == [1, 2, -100, 4, 5]

"""Speech to text: an index against autograd, row by row."""

import pytest
from every_task import assert_recorded, index_of, spectrograms, token_sum, whisper

from lorif_hf.errors import QueryError
from lorif_hf.tasks import task_of


def test_an_index_of_recordings(tmp_path):
    model, rows = whisper(), spectrograms()
    index = index_of(model, rows, tmp_path)
    assert_recorded(index, model, rows, "speech-seq2seq", token_sum)
    assert [example["num_tokens"] for example in index.examples([0, 1])] == [2, 3]


def test_transcripts_are_shown(tmp_path, tokenizer):
    model, rows = whisper(), spectrograms()
    model.resize_token_embeddings(len(tokenizer))
    rows[0]["labels"] = tokenizer("the capital")["input_ids"]
    index = index_of(model, rows, tmp_path, processing_class=tokenizer)
    assert index.examples([0])[0]["text"] == "the capital"


def test_text_is_no_recording():
    with pytest.raises(QueryError, match="Query 0 is text, and a speech recogniser takes none"):
        task_of(whisper()).query_pair(None, "hello", "there", 0)

"""Text to tokens: with whatever tokenizer there is, and an error of ours where there is none or it fails."""

import pytest

from lorif_hf.errors import QueryError
from lorif_hf.tasks import TextReader


def test_tokens_are_the_tokenizers(build, tokenizer):
    reader = TextReader(build("llama"), tokenizer)
    assert reader.tokens("The capital", 0) == tokenizer("The capital")["input_ids"]
    assert reader.vocabulary == build("llama").config.vocab_size and reader.config.model_type == "llama"


def test_a_model_without_embeddings_or_config_has_no_limits(tokenizer):
    from torch import nn

    reader = TextReader(nn.Linear(2, 2), tokenizer)
    assert reader.vocabulary == 0 and reader.config is None


def test_labels_of_a_completion_begin_where_the_prompt_ends(build, tokenizer):
    reader = TextReader(build("llama"), tokenizer)
    feature = reader.completion("The capital of France is", " Paris", 0)
    start = len(tokenizer("The capital of France is")["input_ids"])
    assert feature["input_ids"] == tokenizer("The capital of France is Paris")["input_ids"]
    assert feature["labels"] == [-100] * start + feature["input_ids"][start:]


def test_a_tokenizer_that_fails_and_none_at_all_are_errors_that_name_the_query(build):
    def failing(text, **options):
        raise OverflowError("too long")

    with pytest.raises(QueryError, match=r"The tokenizer fails at query 4 \(OverflowError: too long\)"):
        TextReader(build("llama"), failing).tokens("x", 4)
    with pytest.raises(QueryError, match="Query 2 is text, but the index holds no tokenizer: pass processing_class="):
        TextReader(build("llama"), None).tokens("x", 2)

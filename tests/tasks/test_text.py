"""Text to tokens: with whatever tokenizer there is, and an error of ours where there is none or it fails."""

import jinja2
import pytest
import torch

from lorif_hf.errors import IndexCorruptedError, QueryError
from lorif_hf.tasks import TextReader
from lorif_hf.tasks.query_texts import query_text


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


class PanicException(BaseException):
    """As pyo3's, which is no `Exception`."""


@pytest.mark.parametrize(
    "kind", [PanicException, OverflowError, RecursionError, MemoryError, KeyError, jinja2.TemplateError, OSError]
)
def test_every_error_of_a_tokenizer_is_the_querys(build, kind):
    def failing(text, **options):
        raise kind("y" * 10_000)

    with pytest.raises(QueryError, match=rf"The tokenizer fails at query 4 \({kind.__name__}: '?y+\)\.$") as caught:
        TextReader(build("llama"), failing).tokens("x", 4)
    assert len(str(caught.value)) < 600 and isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, IndexCorruptedError])
def test_interrupts_and_errors_of_the_index_pass(build, kind):
    def failing(text, **options):
        raise kind(*["tokenizer/tokenizer.json", "it is short"][: 1 + (kind is IndexCorruptedError)])

    with pytest.raises(kind):
        TextReader(build("llama"), failing).tokens("x", 4)


@pytest.mark.parametrize("ids", [[5, None], ["a"], [5, 0.5], None, 3, [[5], [6]], torch.tensor([0.5])], ids=str)
def test_what_is_no_list_of_tokens_is_an_error(build, ids):
    with pytest.raises(QueryError, match=r"The tokenizer fails at query 4 \(TypeError: "):
        TextReader(build("llama"), lambda text, **options: {"input_ids": ids}).tokens("x", 4)


@pytest.mark.parametrize("ids", [[5, 6], [[5, 6]], torch.tensor([5, 6]), torch.tensor([[5, 6]])], ids=str)
def test_a_batch_of_one_and_a_tensor_are_lists_too(build, ids):
    assert TextReader(build("llama"), lambda text, **options: {"input_ids": ids}).tokens("x", 4) == [5, 6]


@pytest.mark.parametrize("kind", [PanicException, OverflowError, TypeError])
def test_a_query_that_cannot_be_decoded_is_shown_as_its_first_tokens(kind):
    class Failing:
        def decode(self, ids):
            raise kind

    assert query_text({"input_ids": list(range(40))}, Failing()) == " ".join(map(str, range(32)))
    assert query_text({"input_ids": [3]}, object()) == "3"


def test_an_interrupt_while_decoding_passes():
    class Interrupted:
        def decode(self, ids):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        query_text({"input_ids": [3]}, Interrupted())

"""A model that talks, its tokenizer and its rows for the app's tests, one of them hostile."""

import torch
from datasets import Dataset
from tiny import make_gpt2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{this}} **bold** $x^2$ \u202ereversed\x07"


def talker(seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 whose weights are large enough to say now this, now that."""
    model = make_gpt2(seed, width=32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(15 if weight.dim() > 1 else 1)
    return model


def words(template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per word "1" to "49"."""
    vocabulary = {"[UNK]": 0, **{str(i): i for i in range(1, 50)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[UNK]", unk_token="[UNK]", chat_template=template
    )


def rows(count: int = 24) -> Dataset:
    """Rows of 6 tokens; the text of row 3 is hostile, that of row 5 long, and rows belong to one of three groups."""
    ids = [[(7 * row + 3 * place) % 49 + 1 for place in range(6)] for row in range(count)]
    texts = [" ".join(map(str, row)) for row in ids]
    texts[3] = HOSTILE
    texts[5] = "a long row " * 500 + "and its end"
    groups = [f"group {row % 3}" for row in range(count)]
    return Dataset.from_dict({"input_ids": ids, "text": texts, "source": groups})

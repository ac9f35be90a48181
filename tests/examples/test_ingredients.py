"""What the examples share: BM25 against its formula, docstrings against what Python says of its own objects."""

import asyncio
import math

import numpy as np
import pytest
from ingredients.small_models import answers, completion_rows, new_gpt2, train_tokenizer
from ingredients.standard_library import docstrings
from ingredients.word_overlap import bm25


def test_bm25_is_its_formula():
    documents = ["the cat sat", "the dog and the other dog ran", "a cat, a cat"]
    scores = bm25(documents, ["Cat dog", "nothing in common"], k1=1.2, b=0.5)
    lengths = [3, 7, 4]
    mean = sum(lengths) / 3

    def part(frequency, holding, length):
        rarity = math.log(1 + (3 - holding + 0.5) / (holding + 0.5))
        return rarity * frequency * 2.2 / (frequency + 1.2 * (0.5 + 0.5 * length / mean))

    expected = [part(1, 2, 3), part(2, 1, 7), part(2, 2, 4)]
    np.testing.assert_allclose(scores, [expected, [0, 0, 0]])


def test_docstrings_are_those_of_the_objects():
    pieces = docstrings("asyncio")
    assert pieces == docstrings("asyncio") and len({piece.text for piece in pieces}) == len(pieces) > 100
    assert all(6 <= len(piece.text.split()) <= 40 for piece in pieces)
    join = next(piece for piece in pieces if piece.name == "Queue.join")
    assert join.text == " ".join(asyncio.Queue.join.__doc__.split("\n\n")[0].split()[:40])


@pytest.mark.parametrize("batch_size", [1, 8])
def test_answers_do_not_depend_on_the_batch(batch_size):
    tokenizer = train_tokenizer(["what is this? that", "who"], vocabulary=300)
    model = new_gpt2(tokenizer, width=16, layers=1)
    prompts = ["what", "who is that?", "this is what is this"]
    each = [answers(model, tokenizer, [prompt], max_new_tokens=4)[0] for prompt in prompts]
    assert answers(model, tokenizer, prompts, max_new_tokens=4, batch_size=batch_size) == each


def test_a_completion_is_trained_on_and_its_prompt_is_not():
    tokenizer = train_tokenizer(["what is this? that"], vocabulary=300)
    (row,) = completion_rows([{"prompt": "what", "completion": " that"}], tokenizer)
    trained = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(trained) == " that<eos>" and tokenizer.decode(row["input_ids"]) == "what that<eos>"

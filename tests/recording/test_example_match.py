"""Examples beside rows: other rows are refused, the same ones are not, however they were tokenized."""

import random

import pytest
from datasets import Dataset, Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lorif_hf.errors import DatasetError
from lorif_hf.recording.example_match import check_examples


COUNT = 600
WORDS = [a + b for a in "ba ke lo mi nu po ra si te vu".split() for b in "dan fel gor hin jur lak mos nip ".split(" ")]


def make_texts(count=COUNT, words=(5, 30), seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(*words))).capitalize() + "." for _ in range(count)]


def byte_level_bpe(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<|user|>", "<|assistant|>"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>You are a helpful assistant of someone. {{ m.content }}<eos>"
        "{% endfor %}"
    )
    return fast


def lower_casing_wordpiece(texts):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


@pytest.fixture(scope="module")
def texts():
    return make_texts()


@pytest.fixture(scope="module", params=[byte_level_bpe, lower_casing_wordpiece])
def tokenizer(request, texts):
    return request.param(texts)


def shuffled(count):
    order = list(range(count))
    random.Random(1).shuffle(order)
    return order


ORDERS = {
    "shuffled": shuffled,
    "one later": lambda count: [(i + 1) % count for i in range(count)],
    "one earlier": lambda count: [(i - 1) % count for i in range(count)],
    "halves swapped": lambda count: [(i + count // 2) % count for i in range(count)],
    "reversed": lambda count: list(range(count))[::-1],
    "one dropped in the middle": lambda count: [i if i < count // 2 else min(i + 1, count - 1) for i in range(count)],
    "within blocks of ten": lambda count: [i - i % 10 + (i % 10 * 3) % 10 for i in range(count)],
}


def rows_of(texts, tokenizer, **options):
    return Dataset.from_dict({"input_ids": [tokenizer(text, **options)["input_ids"] for text in texts]})


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", [{}, {"truncation": True, "max_length": 12}], ids=["whole", "truncated"])
def test_rows_in_another_order_are_refused_by_their_tokens(texts, tokenizer, order, options):
    dataset = rows_of(texts, tokenizer, **options)
    examples = Dataset.from_dict({"text": texts})
    check_examples(dataset, examples, COUNT, tokenizer)
    with pytest.raises(DatasetError, match=r"row \d+ of the dataset says .* row \d+ of examples does.*shuffle_datas"):
        check_examples(dataset, examples.select(ORDERS[order](COUNT)), COUNT, tokenizer)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("column", ["example_id", "text", "number"])
def test_rows_in_another_order_are_refused_by_a_shared_column(texts, column, order):
    values = {"example_id": [f"row-{i}" for i in range(COUNT)], "text": texts, "number": list(range(COUNT))}
    dataset = Dataset.from_dict({"input_ids": [[1, 2]] * COUNT, column: values[column]})
    examples = Dataset.from_dict(values)
    check_examples(dataset, examples, COUNT)
    with pytest.raises(DatasetError, match="examples are not the rows of the dataset: row .* Rows were shuffled"):
        check_examples(dataset, examples.select(ORDERS[order](COUNT)), COUNT)


def test_the_first_row_that_differs_is_named():
    ids = [f"row-{i}" for i in range(50)]
    dataset, examples = [{"id": name} for name in ids], [{"id": name} for name in ids]
    examples[7], examples[9] = examples[9], examples[7]
    message = "row 7 of the dataset says 'row-7', row 7 of examples says 'row-9', while row 9 of examples does"
    with pytest.raises(DatasetError, match=message):
        check_examples(dataset, examples, 50)


@pytest.mark.parametrize("order", ORDERS)
def test_many_equal_rows_do_not_hide_the_others(tokenizer, texts, order):
    mostly = [texts[i] if i % 12 == 5 else "Nothing was said." for i in range(COUNT)]
    dataset, examples = rows_of(mostly, tokenizer), Dataset.from_dict({"text": mostly})
    check_examples(dataset, examples, COUNT, tokenizer)
    for shared in (dataset, dataset.add_column("text", mostly)):
        with pytest.raises(DatasetError, match="examples are not the rows"):
            check_examples(shared, examples.select(ORDERS[order](COUNT)), COUNT, tokenizer)


def test_equal_rows_alone_are_accepted_in_any_order(tokenizer):
    same = ["The very same words."] * 30
    check_examples(rows_of(same, tokenizer), Dataset.from_dict({"text": same}), 30, tokenizer)


def chats(texts):
    answers = make_texts(len(texts), seed=9)
    return [
        [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        for text, answer in zip(texts, answers, strict=True)
    ]


@pytest.mark.parametrize("max_length", [1000, 60])
def test_chats(texts, max_length):
    tokenizer = byte_level_bpe(texts)
    messages = chats(texts)
    written = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in messages]
    dataset = rows_of(written, tokenizer, truncation=True, max_length=max_length)
    examples = Dataset.from_dict({"messages": messages, "id": list(range(COUNT))})
    check_examples(dataset, examples, COUNT, tokenizer)
    for order in ORDERS.values():
        with pytest.raises(DatasetError, match="examples are not the rows"):
            check_examples(dataset, examples.select(order(COUNT)), COUNT, tokenizer)


def test_texts_in_several_columns_with_a_prompt_around_them(texts, tokenizer):
    bodies = make_texts(seed=5)
    prompt = "Read the text with great care and say what it is about. Title: {} Body: {} Answer:"
    dataset = rows_of([prompt.format(*pair) for pair in zip(texts, bodies, strict=True)], tokenizer)
    examples = Dataset.from_dict({"title": texts, "body": bodies, "label": [i % 2 for i in range(COUNT)]})
    for shown in (examples, examples.select_columns(["body"])):
        check_examples(dataset, shown, COUNT, tokenizer)
        with pytest.raises(DatasetError, match="examples are not the rows"):
            check_examples(dataset, shown.select(shuffled(COUNT)), COUNT, tokenizer)


def test_a_text_that_was_cleaned_or_framed_is_the_same_text(texts):
    examples = Dataset.from_dict({"text": texts})
    for change in (str.lower, str.upper, lambda text: f"Question: {text} Answer: yes", lambda text: text[:40]):
        dataset = Dataset.from_dict({"text": [change(text) for text in texts], "input_ids": [[1]] * COUNT})
        check_examples(dataset, examples, COUNT)
        with pytest.raises(DatasetError, match="examples are not the rows"):
            check_examples(dataset, examples.select(shuffled(COUNT)), COUNT)


def test_tokens_on_both_sides_may_be_truncated(texts):
    tokenizer = byte_level_bpe(texts)
    whole, cut = rows_of(texts, tokenizer), rows_of(texts, tokenizer, truncation=True, max_length=10)
    check_examples(cut, whole, COUNT)
    with pytest.raises(DatasetError, match="examples are not the rows"):
        check_examples(cut, whole.select(shuffled(COUNT)), COUNT)


@pytest.mark.parametrize(
    "examples",
    [
        [{"text": f"text {i}"} for i in range(100)],
        [{"label": i % 3} for i in range(100)],
        [{"label": f"class {i % 3}", "input_length": i * 7} for i in range(100)],
        [{"text": None} for _ in range(100)],
        [{"text": text} for text in make_texts(100, seed=33)],
        [f"row {i}" for i in range(100)],
        [{"text": "a text" if i == 0 else i, "input_ids": [1] if i < 3 else None} for i in range(100)],
    ],
    ids=["numbered", "labels", "names of labels", "empty", "translated", "no dicts", "mixed"],
)
def test_what_cannot_be_told_is_not_refused(texts, tokenizer, examples):
    dataset = rows_of(texts[:100], tokenizer).add_column("label", [(i + 1) % 3 for i in range(100)])
    check_examples(dataset, examples, 100, tokenizer)


def test_rows_numbered_anew_after_a_filter_are_accepted(texts, tokenizer):
    examples = Dataset.from_dict({"text": texts, "id": [2 * i for i in range(COUNT)]})
    check_examples(rows_of(texts, tokenizer).add_column("id", list(range(COUNT))), examples, COUNT, tokenizer)


def test_ids_of_other_rows_are_refused_where_no_text_says_otherwise(texts, tokenizer):
    examples = Dataset.from_dict({"text": texts, "id": [10_000 + 3 * i for i in range(COUNT)]})
    renumbered = rows_of(texts, tokenizer).add_column("id", list(range(COUNT)))
    check_examples(renumbered, examples, COUNT, tokenizer)
    with pytest.raises(DatasetError, match="row 0 of the dataset says 0, row 0 of examples says 10000. Rows were"):
        check_examples(renumbered.remove_columns("input_ids"), examples, COUNT)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_rows(texts, tokenizer, count):
    few = texts[:count]
    dataset, examples = rows_of(few, tokenizer), Dataset.from_dict({"text": few})
    check_examples(dataset, examples, count, tokenizer)
    if count > 1:
        with pytest.raises(DatasetError, match="row 0 of the dataset says"):
            check_examples(dataset, examples.select([*range(1, count), 0]), count, tokenizer)


def test_texts_without_spaces(texts):
    draw = random.Random(3)
    signs = [chr(0x4E00 + i) for i in range(300)]
    written = ["".join(draw.choices(signs, k=draw.randint(15, 40))) + "。" for _ in range(COUNT)]
    tokenizer = lower_casing_wordpiece(written)
    dataset, examples = rows_of(written, tokenizer), Dataset.from_dict({"text": written})
    check_examples(dataset, examples, COUNT, tokenizer)
    with pytest.raises(DatasetError, match="examples are not the rows"):
        check_examples(dataset, examples.select(shuffled(COUNT)), COUNT, tokenizer)


def test_answers_from_a_document_that_many_rows_share(texts, tokenizer):
    """Each row begins with one of ten documents, of which it is asked a sentence; most of them are cut away."""
    documents = [texts[start : start + 60] for start in range(0, COUNT, 60)]
    answers = Dataset.from_dict({"answer": texts})
    written = [" ".join(documents[i // 60]) for i in range(COUNT)]
    check_examples(rows_of(written, tokenizer, truncation=True, max_length=300), answers, COUNT, tokenizer)


def test_images_are_not_decoded(texts, tokenizer):
    broken = Dataset.from_dict({"image": [{"bytes": b"no image", "path": None}] * COUNT, "text": texts})
    broken = broken.cast_column("image", Image())
    check_examples(rows_of(texts, tokenizer), broken, COUNT, tokenizer)
    with pytest.raises(DatasetError, match="examples are not the rows"):
        check_examples(rows_of(texts, tokenizer), broken.select(shuffled(COUNT)), COUNT, tokenizer)


def test_halves_of_surrogate_pairs_are_no_trouble(texts):
    written = [f"{text} \ud83d" for text in texts[:20]]
    dataset = [{"input_ids": [1], "text": text} for text in written]
    check_examples(dataset, [{"text": f"{text} more of it"} for text in written], 20)
    with pytest.raises(DatasetError, match="examples are not the rows"):
        check_examples(dataset, [{"text": f"{text} more of it"} for text in written[::-1]], 20)


def test_short_texts(tokenizer):
    draw = random.Random(4)
    names = ["".join(draw.choices("abcdefghij", k=7)) for _ in range(300)]
    dataset, examples = rows_of(names, tokenizer), Dataset.from_dict({"text": names})
    check_examples(dataset, examples, 300, tokenizer)
    if tokenizer.unk_token is None:
        with pytest.raises(DatasetError, match="examples are not the rows"):
            check_examples(dataset, examples.select(shuffled(300)), 300, tokenizer)


def test_a_large_set_that_was_shuffled(texts):
    """Of a hundred thousand rows, most are not looked at."""
    count = 100_000
    dataset = Rows(lambda row: {"text": f"{row * 7919} {texts[row % COUNT]} {row * 104729}"}, count)
    order = shuffled(count)
    check_examples(dataset, dataset, count)
    for other in (lambda row: dataset[order[row]], lambda row: dataset[(row + 1) % count]):
        framed = Rows(lambda row, other=other: {"text": f"Here it is: {other(row)['text']} That was it."}, count)
        with pytest.raises(DatasetError, match="examples are not the rows"):
            check_examples(dataset, framed, count)


class Rows:
    def __init__(self, read, count):
        self.read, self.count = read, count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return self.read(row)


def test_what_a_row_quotes_of_another_does_not_speak_against_its_own_example(texts, tokenizer):
    """Every other row says what the next one says, and what is its own was cut away; the next one is at home."""
    written = [texts[i + 1] if i % 2 == 0 else texts[i] for i in range(COUNT)]
    check_examples(rows_of(written, tokenizer), Dataset.from_dict({"answer": texts}), COUNT, tokenizer)

"""Chats by the template of a tokenizer or a processor, whether it reads texts or lists of parts."""

import pytest
from recordings import train_tokenizer
from transformers import Gemma3ImageProcessorPil, Gemma3Processor

from lorif_hf.errors import QueryError
from lorif_hf.tasks import TextReader, task_of
from lorif_hf.tasks.chat import ChatReader, is_chat
from lorif_hf.tasks.query_forms import query_features
from lorif_hf.tasks.query_texts import query_text


CHAT = [{"role": "user", "content": "The capital of Italy?"}, {"role": "assistant", "content": "Rome"}]
# As Llava's: a text is passed over in silence, letter by letter.
PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}<eos>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As others': a text raises.
PARTS_ALONE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'][0]['text'] + '' }}<eos>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def parts(messages):
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


@pytest.fixture
def own():
    """A tokenizer to be changed."""
    return train_tokenizer()


def answer(build, processing_class, messages=CHAT, **options):
    reader = ChatReader(TextReader(build("llama"), processing_class))
    return reader.answer(messages[:-1], messages[-1:], 3, **options)


def measured(feature, tokenizer):
    return tokenizer.decode([token for token in feature["labels"] if token != -100])


@pytest.mark.parametrize("template", [PARTS, PARTS_ALONE])
def test_a_template_that_reads_parts_alone_gets_parts(build, own, tokenizer, template):
    expected = answer(build, tokenizer)
    own.chat_template = template
    assert answer(build, own) == answer(build, own, parts(CHAT)) == expected
    assert measured(expected, own) == "Rome<eos>"


def test_a_template_that_leaves_out_what_is_said_is_an_error(build, own):
    own.chat_template = "{% for m in messages %}<|{{ m['role'] }}|><eos>{% endfor %}"
    with pytest.raises(QueryError, match="chat template leaves out what the messages of query 3 say"):
        answer(build, own)


def test_the_first_failure_of_a_template_that_reads_neither_form_is_told(build, own):
    own.chat_template = "{{ raise_exception('no ' ~ messages[0]['content']) }}"
    with pytest.raises(QueryError, match=r"fails at query 3 \(TemplateError: no The capital of Italy\?\)"):
        answer(build, own)


def test_an_answer_starts_where_the_tokens_of_the_prompt_end_to_be_those_of_the_whole(build, own):
    """A template that opens an answer otherwise than it writes one down, as those of thinking models do."""
    own.chat_template = own.chat_template.replace("<|assistant|>{% endif %}", "<|assistant|><bos>{% endif %}")
    feature = answer(build, own)
    assert own.decode(feature["input_ids"]) == "<|user|>The capital of Italy?<eos><|assistant|>Rome<eos>"
    assert measured(feature, own) == "Rome<eos>"


def test_options_reach_the_template(build, own):
    own.chat_template = own.chat_template + "{{ word }}{% if tools %}{{ tools[0]['name'] }}{% endif %}"
    feature = answer(build, own, word="Paris", tools=[{"name": "France"}])
    assert measured(feature, own) == "Rome<eos>ParisFrance"


def test_a_chat_of_an_answer_alone_is_measured_on_all_of_it(build, tokenizer):
    feature = answer(build, tokenizer, CHAT[1:])
    assert feature["labels"] == feature["input_ids"] and measured(feature, tokenizer) == "<|assistant|>Rome<eos>"


@pytest.mark.parametrize("options", [{"tokenize": False}, {"return_dict": 1}, {"tools": [3]}], ids=str)
def test_options_that_do_not_fit_are_the_querys_error(build, tokenizer, options):
    with pytest.raises(QueryError, match="fails at query 3 "):
        answer(build, tokenizer, **options)


@pytest.mark.parametrize(
    "value, expected",
    [
        (CHAT, True),
        (tuple(parts(CHAT)), True),
        ([{"role": "assistant", "tool_calls": [{}]}], True),
        ([{"role": "assistant", "content": ""}], True),
        ([], False),
        ("text", False),
        ([{"role": "user"}], False),
        ([{"role": 3, "content": ""}], False),
        ([{"role": "user", "content": [{"type": "image"}]}], False),
        ([{"role": "user", "content": 3}], False),
        (["a"], False),
    ],
    ids=str,
)
def test_what_a_chat_is(value, expected):
    assert is_chat(value) is expected


@pytest.fixture
def processor(own):
    """As Gemma 3's, with a template of its own that reads parts alone."""
    own.chat_template = None
    for name, token in {"boi_token": "<pad>", "eoi_token": "<|system|>", "image_token": "<pad>"}.items():
        setattr(own, name, token)
        setattr(own, f"{name}_id", own.convert_tokens_to_ids(token))
    return Gemma3Processor(Gemma3ImageProcessorPil(), own, chat_template=PARTS)


@pytest.mark.parametrize(
    "query",
    ["The capital", ("The", " capital"), CHAT, parts(CHAT), {"prompt": CHAT[:1], "completion": CHAT[1:]}],
    ids=["text", "pair", "chat", "parts", "completion"],
)
def test_a_processor_answers_as_its_tokenizer_does(build, processor, tokenizer, query):
    """The tokenizer's template reads texts, so it gets those."""
    model = build("llama")
    found = query_features(query, model, task_of(model), processor)
    plain = CHAT if query == parts(CHAT) else query
    expected = query_features(plain, model, task_of(model), tokenizer)
    if isinstance(query, (dict, list)):  # Gemma's processor opens a text with <bos>
        assert processor.tokenizer.decode(found[0]["input_ids"]).removeprefix("<bos>") == tokenizer.decode(
            expected[0]["input_ids"]
        )
        assert measured(found[0], tokenizer) == measured(expected[0], tokenizer) == "Rome<eos>"
    else:
        assert found == expected
    assert query_text(found[0], processor) == tokenizer.decode(found[0]["input_ids"])


def test_a_tokenizers_template_goes_before_the_processors(build, processor, tokenizer):
    processor.tokenizer.chat_template = tokenizer.chat_template
    processor.chat_template = "no"
    assert answer(build, processor) == answer(build, tokenizer)


def test_a_processor_without_any_template_and_one_without_tokenizer_are_errors(build, processor):
    processor.chat_template = None
    with pytest.raises(QueryError, match="Query 3 is a chat, but the tokenizer has no chat template: pass text"):
        answer(build, processor)
    processor.tokenizer = None
    with pytest.raises(QueryError, match="Query 3 is a chat, but the index holds no tokenizer"):
        answer(build, processor)
    with pytest.raises(QueryError, match="Query 3 is text, but the index holds no tokenizer"):
        TextReader(build("llama"), processor).tokens("x", 3)

"""A tokenizer in a process: the same tokens, and bounds in time and memory whatever it does."""

import contextlib
import copy
import multiprocessing
import os
import pickle
import threading
import time
from functools import partial

import pytest
from recordings import train_tokenizer
from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from lorif_hf.errors import QueryError
from lorif_hf.tasks import TextReader, task_of, tokenizer_process
from lorif_hf.tasks.query_forms import query_features
from lorif_hf.tasks.query_texts import query_text
from lorif_hf.tasks.tokenizer_process import TokenizerError, TokenizerProcess, TokenizerStoppedError


CHAT = [{"role": "user", "content": "The capital?"}, {"role": "assistant", "content": "Rome"}]


def process(folder):
    return TokenizerProcess(partial(contextlib.nullcontext, folder))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("honest")
    train_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def confined(saved):
    return process(saved)


@pytest.fixture
def hostile(tmp_path):
    """Saves a tokenizer after a change to it, and gives it in a process."""

    def save(change):
        tokenizer = train_tokenizer()
        change(tokenizer)
        tokenizer.save_pretrained(tmp_path)
        return process(tmp_path)

    return save


@pytest.mark.parametrize("text", ["The capital of France", "", "caf\u00e9 \U0001f642", "<eos>", "x" * 200_000])
def test_it_gives_the_tokens_of_the_tokenizer(confined, tokenizer, text):
    assert confined(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert confined(text, add_special_tokens=False)["input_ids"] == tokenizer(text)["input_ids"]
    assert confined(text, text_pair="b") == {
        key: value for key, value in tokenizer(text, text_pair="b").items() if key != "attention_mask"
    }
    assert confined.decode(tokenizer(text)["input_ids"]) == text


def test_it_knows_what_queries_ask_of_a_tokenizer(confined, tokenizer):
    for name in ("pad_token_id", "eos_token_id"):
        assert getattr(confined, name) == getattr(tokenizer, name) is not None
    assert confined.chat_template is True

    def search(text: str):
        """Search.

        Args:
            text: what to search.
        """

    options = {"tokenize": True, "return_dict": True, "tools": [search], "add_generation_prompt": True}
    expected = tokenizer.apply_chat_template(CHAT, **options)["input_ids"]
    assert confined.apply_chat_template(CHAT, **options) == {"input_ids": expected}


@pytest.mark.parametrize("query", ["The capital", ("The capital", " of France"), CHAT, [CHAT, "Rome"]], ids=str)
def test_queries_do_not_tell_it_from_the_tokenizer(build, confined, tokenizer, query):
    model = build("llama")
    found, expected = (query_features(query, model, task_of(model), it) for it in (confined, tokenizer))
    assert found == expected
    assert [query_text(f, confined) for f in found] == [query_text(f, tokenizer) for f in found]


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda it: it("a\ud800"), "TypeError: TextEncodeInput"),
        (lambda it: it.apply_chat_template([]), "ValueError: Cannot apply chat template to an empty"),
        (lambda it: it.decode([2**70]), "OverflowError: "),
    ],
    ids=["surrogate", "empty", "number"],
)
def test_its_errors_are_told_and_leave_it_at_work(confined, call, reason):
    confined("x")
    child = confined._child
    with pytest.raises(TokenizerError, match=reason):
        call(confined)
    assert confined._child is child and child.running
    assert confined.decode([]) == ""


def doubling(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "aa")] * 40)


def doubling_decoder(tokenizer):
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.Replace("a", "aa")] * 40)


def backtracking(tokenizer):
    split = pre_tokenizers.Split(Regex("^(a|a|aa)+$"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel()])


def template(text):
    def change(tokenizer):
        tokenizer.chat_template = text

    return change


LOOP = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
STOPPED = "it took over 1 s|MemoryError|its process ended, perhaps for want of memory"


def encode(it):
    return it("a" * 60 + "b")


def chat(it):
    return it.apply_chat_template(CHAT)


def decode(it):
    return it.decode(it("a")["input_ids"])


@pytest.mark.parametrize(
    "change, call, reason",
    [
        (doubling, encode, STOPPED),
        (doubling_decoder, decode, STOPPED),
        (backtracking, encode, f"PanicException|{STOPPED}"),
        (template(LOOP), chat, STOPPED),
        (template("{{ 'a' * 4294967296 }}"), chat, STOPPED),
        (template("{{ '%4000000000d' % 1 }}"), chat, STOPPED),
        (template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), chat, "RecursionError"),
        (template("{{ raise_exception('no' * 100000) }}"), chat, "TemplateError: nonono"),
        (template("{% for %}"), chat, "TemplateSyntaxError"),
        (template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), chat, "SecurityError"),
    ],
    ids=["normaliser", "decoder", "regex", "loops", "4 GB", "format", "recursion", "raises", "syntax", "unsafe"],
)
def test_a_hostile_tokenizer_is_stopped_in_time_and_the_next_request_works(monkeypatch, hostile, change, call, reason):
    monkeypatch.setattr(tokenizer_process, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(tokenizer_process, "MEMORY", 1 << 29)
    it = hostile(change)
    it.eos_token_id  # noqa: B018  # starts it, which is not counted
    began = time.monotonic()
    with pytest.raises(TokenizerError, match=reason) as caught:
        call(it)
    assert time.monotonic() - began < 15 and len(str(caught.value)) < 600
    assert it("b")["input_ids"] == train_tokenizer()("b")["input_ids"] or change is backtracking


def test_a_tokenizer_that_is_stopped_again_and_again_is_not_asked_any_more(monkeypatch, hostile):
    monkeypatch.setattr(tokenizer_process, "REQUEST_SECONDS", 1)
    it = hostile(template(LOOP))
    for _ in range(2):
        assert it("b")["input_ids"], "what works in between counts"
        for _ in range(2):
            with pytest.raises(TokenizerStoppedError, match="it took over 1 s"):
                chat(it)
    with pytest.raises(TokenizerStoppedError):
        chat(it)
    began = time.monotonic()
    for _ in range(1000):
        with pytest.raises(TokenizerStoppedError, match="it took over 1 s"):
            it("b")
    assert time.monotonic() - began < 1


def test_an_answer_that_would_fill_this_process_is_refused(monkeypatch, hostile):
    monkeypatch.setattr(tokenizer_process, "LONGEST_ANSWER", 1 << 16)
    it = hostile(template("{{ 'a b' * 100000 }}"))
    with pytest.raises(TokenizerStoppedError, match="it made over 65,536 bytes of tokens or text"):
        chat(it)


def test_a_tokenizer_that_cannot_be_loaded_is_tried_once(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    it = process(tmp_path)
    with pytest.raises(TokenizerError) as caught:
        it("x")
    assert it._child is None
    monkeypatch.setattr(tokenizer_process, "_Child", lambda: pytest.fail("tried again"))
    with pytest.raises(TokenizerError) as again:
        it.decode([1])
    assert str(again.value) == str(caught.value)
    assert it.pad_token_id is None


def test_loading_is_bounded_too(saved, monkeypatch):
    monkeypatch.setattr(tokenizer_process, "START_SECONDS", 0)
    with pytest.raises(TokenizerStoppedError, match="it took over 0 s"):
        process(saved)("x")


@pytest.mark.parametrize("executable", ["/nowhere/python", "", None])
def test_no_python_to_start_is_said(saved, monkeypatch, executable):
    monkeypatch.setattr(tokenizer_process.sys, "executable", executable)
    with pytest.raises(TokenizerStoppedError, match="no process for it could be started: "):
        process(saved)("x")


def test_an_error_names_the_query_and_the_way_out(build, hostile):
    reader = TextReader(build("llama"), hostile(backtracking))
    with pytest.raises(QueryError) as caught:
        reader.tokens("a" * 60 + "b", 7)
    assert "The tokenizer fails at query 7 (PanicException: " in str(caught.value)
    assert "It came with the index: pass processing_class= with a tokenizer of your own." in str(caught.value)


def test_an_interrupt_passes_and_the_answer_is_not_taken_for_the_next(confined, tokenizer, monkeypatch):
    confined("x")
    child = confined._child

    def interrupted(line):
        child._process.stdin.write(line)
        child._process.stdin.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        confined("The capital")
    assert not child.running
    assert confined("Rome")["input_ids"] == tokenizer("Rome")["input_ids"]


def test_a_request_that_is_no_json_leaves_it_at_work(confined):
    confined("x")
    child = confined._child
    with pytest.raises((TypeError, ValueError)):
        confined.apply_chat_template([{"role": "user", "content": object()}])
    circle = []
    circle.append(circle)
    with pytest.raises((ValueError, RecursionError)):
        confined.apply_chat_template(circle)
    assert confined._child is child and child.running


def test_a_child_that_was_killed_is_started_anew(confined, tokenizer):
    confined("x")
    confined._child._process.kill()
    confined._child._process.wait()
    assert confined("Rome")["input_ids"] == tokenizer("Rome")["input_ids"]


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_and_pickles_have_a_child_of_their_own(confined, tokenizer, copied):
    confined("x")
    other = copied(confined)
    assert other._child is None
    assert other("Rome")["input_ids"] == tokenizer("Rome")["input_ids"]
    assert other._child is not confined._child


def test_the_child_ends_with_its_owner(saved):
    it = process(saved)
    it("x")
    running = it._child._process
    assert running.poll() is None
    del it
    assert running.wait(10) is not None
    it = process(saved)
    it.close()
    it("x")
    running = it._child._process
    it.close()
    assert running.wait(10) is not None


def test_threads_take_turns(confined, tokenizer):
    texts = [f"The capital {number}" for number in range(40)]
    found = {}

    def ask(some):
        for text in some:
            found[text] = confined(text)["input_ids"]

    threads = [threading.Thread(target=ask, args=(texts[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {text: tokenizer(text)["input_ids"] for text in texts}


def _in_a_fork(it, queue):
    queue.put((os.getpid(), it("Rome")["input_ids"], it._child._owner))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_starts_its_own_and_leaves_this_one_at_work(confined, tokenizer):
    expected = tokenizer("Rome")["input_ids"]
    confined("x")
    child, context = confined._child, multiprocessing.get_context("fork")
    queue = context.Queue()
    forked = context.Process(target=_in_a_fork, args=(confined, queue))
    forked.start()
    pid, tokens, owner = queue.get(timeout=60)
    forked.join(60)
    assert tokens == expected and owner == pid != os.getpid()
    assert confined._child is child and child.running and confined("Rome")["input_ids"] == expected

"""The tokenizer of an index from anybody costs a query its seconds, never the memory or the session."""

import json
import shutil
import time

import pytest
from tampering import CONFIG, sign
from tiny import VOCABULARY, make_gpt2, make_rows
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorif_hf import InfluenceIndex
from lorif_hf.errors import QueryError
from lorif_hf.tasks import tokenizer_process


CHAT = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]
OWN = "pass processing_class= with a tokenizer of your own"


def make_tokenizer():
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "index"
    InfluenceIndex.build(make_gpt2(), make_rows(6), folder, config=CONFIG, processing_class=make_tokenizer())
    return folder


@pytest.fixture
def hostile(built, tmp_path, monkeypatch):
    """An index whose tokenizer was changed, with limits for impatient tests."""
    monkeypatch.setattr(tokenizer_process, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(tokenizer_process, "MEMORY", 1 << 29)

    def make(change):
        shutil.copytree(built, tmp_path / "index")
        tokenizer = make_tokenizer()
        change(tokenizer)
        template, tokenizer.chat_template = tokenizer.chat_template, None
        tokenizer.save_pretrained(tmp_path / "index/tokenizer")
        if template is not None:  # into a file for which the manifest vouches
            path = tmp_path / "index/tokenizer/tokenizer_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
        sign(tmp_path / "index")
        return InfluenceIndex.from_pretrained(tmp_path / "index")

    return make


def doubling(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("w", "ww")] * 40)


def backtracking(tokenizer):
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("^(a|a|aa)+$"), "isolated")


def template(text):
    def change(tokenizer):
        tokenizer.chat_template = text

    return change


@pytest.mark.parametrize(
    "change, query",
    [
        (doubling, "w1 w2 w3"),
        (backtracking, "a" * 60 + "b"),
        (template("{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3), CHAT),
        (template("{{ 'a' * 4294967296 }}"), CHAT),
        (template("{{ messages[0].nothing.at_all }}"), CHAT),
    ],
    ids=["normaliser", "regex", "loops", "4 GB", "undefined"],
)
def test_a_query_is_an_error_of_ours_in_time_and_the_index_answers_on(hostile, change, query):
    index, model = hostile(change), make_gpt2()
    began = time.monotonic()
    with pytest.raises(QueryError, match=rf"The tokenizer fails at query 1 \(.+\)\. It came with the index: {OWN}"):
        index.attribute(model, [{"input_ids": [1, 2, 3]}, query])
    assert time.monotonic() - began < 30
    expected = InfluenceIndex.from_pretrained(index.path).scores(model, {"input_ids": [1, 2, 3]})
    assert (index.scores(model, "w1 w2 w3", processing_class=make_tokenizer()) == expected).all()
    result = index.attribute(model, {"input_ids": [1, 2, 3]}, top_k=6)
    assert result.queries[0] in ("w1 w2 w3", "1 2 3"), "shown as tokens where it cannot be decoded"


def test_tokens_need_no_tokenizer_that_loads(hostile):
    index = hostile(lambda tokenizer: None)
    (index.path / "tokenizer/tokenizer.json").write_text("{")
    sign(index.path)
    index = InfluenceIndex.from_pretrained(index.path)
    assert index.attribute(make_gpt2(), {"input_ids": [1, 2, 3]}, top_k=6).queries == ["1 2 3"]
    with pytest.raises(QueryError, match=OWN):
        index.attribute(make_gpt2(), "w1 w2")

"""The tokenizer of an index: the files that the manifest vouches for, in a process or in this one."""

import pickle

import pytest
import transformers
from tampering import CONFIG, sign
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceIndex
from lorif_hf.errors import IndexCorruptedError, IndexFormatError
from lorif_hf.querying.index_tokenizer import confined_tokenizer, load_tokenizer
from lorif_hf.storage.layout import MANIFEST, Manifest
from lorif_hf.storage.store import LocalStore
from lorif_hf.tasks.tokenizer_process import TokenizerError


@pytest.fixture
def folder(tmp_path, tokenizer):
    InfluenceIndex.build(make_gpt2(), make_rows(6), tmp_path / "index", config=CONFIG, processing_class=tokenizer)
    return tmp_path / "index"


def parts(folder):
    return LocalStore(folder), Manifest.from_json((folder / MANIFEST).read_text())


def test_both_give_the_tokens_of_the_tokenizer_that_the_index_was_built_with(folder, tokenizer):
    confined, loaded = confined_tokenizer(*parts(folder)), load_tokenizer(*parts(folder))
    assert confined("3 4 5")["input_ids"] == loaded("3 4 5")["input_ids"] == tokenizer("3 4 5")["input_ids"]
    again = pickle.loads(pickle.dumps(confined))
    assert again("3 4 5")["input_ids"] == tokenizer("3 4 5")["input_ids"]


def test_an_index_without_a_tokenizer_has_none(tmp_path):
    InfluenceIndex.build(make_gpt2(), make_rows(6), tmp_path / "index", config=CONFIG)
    assert confined_tokenizer(*parts(tmp_path / "index")) is load_tokenizer(*parts(tmp_path / "index")) is None


def test_a_file_that_the_manifest_does_not_vouch_for_reaches_neither(folder):
    (folder / "tokenizer/chat_template.jinja").write_text("{{ 'injected' }}")
    assert not confined_tokenizer(*parts(folder)).chat_template
    assert load_tokenizer(*parts(folder)).chat_template is None


def test_a_file_that_is_not_what_the_manifest_says_is_named(folder):
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    for use in (load_tokenizer, lambda *index: confined_tokenizer(*index)("x")):
        with pytest.raises(IndexCorruptedError, match="tokenizer/tokenizer.json"):
            use(*parts(folder))


class PanicException(BaseException):
    """As pyo3's, which is no `Exception`."""


@pytest.mark.parametrize("kind", [PanicException, OSError])
def test_whatever_transformers_raises_of_a_tokenizer_is_an_error_of_the_index(folder, monkeypatch, kind):
    def failing(*args, **options):
        raise kind

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", failing)
    with pytest.raises(IndexFormatError, match=f"cannot be loaded \\({kind.__name__}\\): pass processing_class="):
        load_tokenizer(*parts(folder))


def test_a_damaged_tokenizer_is_an_error_of_both(folder):
    (folder / "tokenizer/tokenizer.json").write_text("{")
    sign(folder)
    with pytest.raises(IndexFormatError, match="cannot be loaded"):
        load_tokenizer(*parts(folder))
    with pytest.raises(TokenizerError):
        confined_tokenizer(*parts(folder))("x")


def test_the_index_asks_its_tokenizer_in_a_process_unless_it_was_built_here(folder, tmp_path, tokenizer, monkeypatch):
    model = make_gpt2()
    index = InfluenceIndex.from_pretrained(folder)
    expected = index.scores(model, "3 4 5", processing_class=tokenizer)
    assert index._asked_tokenizer._child is None, "a tokenizer that is passed needs no process"
    assert index.attribute(model, "3 4 5").queries == ["3 4 5"]
    assert (index.scores(model, "3 4 5") == expected).all()
    child = index._asked_tokenizer._child
    assert child.running
    index.select([1, 2]).scores(model, "3 4 5")
    assert index._asked_tokenizer._child is child, "a selection asks the same process"
    assert index.processing_class("3 4 5")["input_ids"] == [3, 4, 5]
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **options: pytest.fail("loaded"))
    index.scores(model, "3 4 5")
    built = InfluenceIndex.build(model, make_rows(6), tmp_path / "own", config=CONFIG, processing_class=tokenizer)
    assert built._asked_tokenizer is tokenizer
    assert built.attribute(model, "3 4 5").queries == ["3 4 5"]


@pytest.mark.parametrize("kind", ["image", "sound", "both"])
def test_what_an_index_holds_for_images_and_sounds_is_loaded_for_those_who_ask_alone(tmp_path, tokenizer, kind):
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    held = {
        "image": transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}),
        "sound": extractor,
        "both": transformers.WhisperProcessor(extractor, tokenizer),
    }[kind]
    InfluenceIndex.build(make_gpt2(), make_rows(6), tmp_path / "index", config=CONFIG, processing_class=held)
    loaded, confined = load_tokenizer(*parts(tmp_path / "index")), confined_tokenizer(*parts(tmp_path / "index"))
    assert type(loaded) is type(held)
    if kind != "both":
        assert loaded.to_dict() == held.to_dict() and confined is None
    else:
        assert loaded.feature_extractor.to_dict() == extractor.to_dict()
        assert confined("3 4 5")["input_ids"] == tokenizer("3 4 5")["input_ids"]
    index = InfluenceIndex.from_pretrained(tmp_path / "index")
    assert type(index.processing_class) is type(held)

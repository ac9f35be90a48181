"""What a card tells a stranger: its day and version, how to install, what is public, and which repos are linked."""

import hashlib
import re
from datetime import datetime, timezone
from importlib.metadata import version

import pytest
from huggingface_hub import DatasetCard
from index_cards import MODEL, REPO, card, manifest, table
from tiny import plain_config

from lorif_hf.hub.cards import bank_card, index_card, model_card_section
from lorif_hf.storage.layout import FileEntry


HOSTILE = "<b>[x](http://evil.example)</b>"


def signed_by_us(text):
    """A card whose section counts as nobody's but ours."""
    section = re.search(r"begin [0-9a-f]* -->\n(.*?)<!-- lorif-hf: end -->", text, re.DOTALL)[1]
    digest = hashlib.sha256(section.encode()).hexdigest()[:16]
    return re.sub(r"begin [0-9a-f]* -->", f"begin {digest} -->", text)


def test_a_card_keeps_its_day_as_long_as_nothing_else_is_new():
    today = card()
    made = dict(table(today))["made"]
    assert made == f"{datetime.now(timezone.utc).date()}, lorif-hf {version('lorif-hf')}"
    before = signed_by_us(today.replace(made, "2026-01-02, lorif-hf 0.0.9"))
    assert card(before) == before and card(before.replace("\n", "\r\n")).count("2026-01-02") == 1
    assert dict(table(card(before, count=5000)))["made"] == made
    hostile = signed_by_us(today.replace(made, "<script>alert(1)</script>"))
    assert dict(table(card(hostile)))["made"] == made


@pytest.mark.parametrize(
    ("kept", "shown"),
    [
        ({"text": True}, "its text"),
        ({"text": 1200}, "the first 1,200 characters of its text"),
        ({"text": False}, "no text of it"),
        ({}, "its text, where the table has one"),
        ({"text": HOSTILE}, "its text"),
    ],
    ids=["whole", "cut", "none", "unknown", "hostile"],
)
def test_the_card_says_how_to_install_and_what_is_public(kept, shown):
    text = card(dataset=kept)
    assert f"sees of each training example {shown}, its name" in text and HOSTILE not in text
    assert 'pip install "lorif-hf"' in text and "and the tokenizer" not in text
    tokenizer = [FileEntry("tokenizer/tokenizer.json", 1, "a" * 64)]
    assert "to the table; and the tokenizer." in card(tokenizer=tokenizer)
    assert 'pip install "lorif-hf[peft]"' in card(model={"adapter": {"default": {}}})


def test_the_card_of_a_bank_says_the_same_of_itself():
    info = {
        "num_subsets": 2,
        "seeds": [0],
        "num_queries": 3,
        "num_examples": 10,
        "subset_size": 5,
        "format_version": "1.0",
        "model": {"model_class": "GPT2LMHeadModel"},
        "dataset": {"fingerprint": "a" * 64},
        "objective": {"name": "causal-lm"},
        "training": {"learning_rate": 0.1},
    }
    made = bank_card(info, None, "me/bank", None)
    assert "pip install lorif-hf" in made and "## What is public here" in made
    assert dict(table(made))["made"].endswith(version("lorif-hf")) and bank_card(info, None, "me/bank", made) == made


def test_the_indexed_model_and_the_training_set_are_linked():
    known = {"name": "org/texts", "revision": "c0ffee"}
    made = index_card(manifest(dataset=known), plain_config(), REPO, None, model_id=MODEL)
    data = DatasetCard(made).data.to_dict()
    assert data["base_model"] == MODEL and data["source_datasets"] == ["org/texts"]
    unknown = DatasetCard(card(dataset={"name": "parquet"})).data.to_dict()
    assert unknown["base_model"] == "org/model" and "source_datasets" not in unknown


ENTRY = "datasets:\n- org/texts\n"
WINDOWS = "---\r\nlicense: mit\r\n---\r\n# Mine"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", f"---\n{ENTRY}---\n"),
        ("# Mine\n", f"---\n{ENTRY}---\n# Mine\n"),
        ("---\nlicense: mit\n---\n# Mine\n", f"---\nlicense: mit\n{ENTRY}---\n# Mine\n"),
        (WINDOWS, WINDOWS.replace("mit\r\n", "mit\r\ndatasets:\r\n- org/texts\r\n")),
        ("---\ndatasets: [a/b]\n---\n# Mine\n", "---\ndatasets: [a/b]\n---\n# Mine\n"),
        ("---\n---\n# Mine\n", f"---\n{ENTRY}---\n# Mine\n"),
    ],
    ids=["no card", "no YAML", "YAML", "Windows", "named already", "empty YAML"],
)
def test_a_models_card_names_the_training_set_once(old, new):
    known = {"name": "org/texts", "revision": "c0ffee"}
    made = model_card_section(manifest(dataset=known), plain_config(), REPO, old, MODEL)
    assert made.startswith(new.rstrip("\r\n")) and made.count("org/texts") == new.count("org/texts")
    assert model_card_section(manifest(dataset=known), plain_config(), REPO, made, MODEL) == made

"""The demo: its facts are true, its proof holds on a small version of it, and what it shows says so."""

import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console


sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.demo import facts, proof, show
from examples.demo.__main__ import commands, run
from examples.demo.training import Answer, Recipe
from lorif_hf import InfluenceIndex


ROOT = Path(__file__).parents[2]


def test_no_two_subjects_share_an_answer_and_every_table_is_whole():
    answers = Counter((telling.relation, answer) for _, *told in facts.subjects() for telling, answer in told)
    assert [answer for answer, count in answers.items() if count > 1] == []
    assert len(list(facts.subjects())) == 24 + 24
    assert all(answer.strip() == answer != "" for _, answer in answers)


def test_each_asked_fact_is_told_in_other_words_than_the_question():
    rows = facts.training_rows(num_passages=50).to_list()
    assert len({row["text"] for row in rows}) == len(rows)
    for question in facts.questions():
        told = [row for row in rows if (row["subject"], row["relation"]) == (question.subject, question.relation)]
        orders = Counter(row["order"] for row in told)
        assert orders == {"answer last": 6, "answer first": 6}  # five ways to tell it, one of them copied
        for row in told:
            assert row["text"].startswith(question.answer) or row["text"][:-1].endswith(question.answer)
            assert question.prompt not in row["text"] or row["order"] == "answer first"
    others = [row["text"] for row in rows if row["subject"] not in facts.ASKED]
    assert any(text.startswith("The capital of ") for text in others)


def test_the_passages_are_sentences_of_the_reference():
    passages = facts.passages(100)
    assert len(passages) == 100 and len({row["text"] for row in passages}) == 100
    assert all(30 < len(row["text"]) < 80 and unicodedata.category(row["text"][0]) == "Lu" for row in passages)


def test_words_alone_take_the_answer_first_and_the_fact_beside_it():
    rows, questions = facts.training_rows(num_passages=50), facts.questions()
    texts = list(rows["text"])
    for question, chosen in zip(questions, proof.rows_by_words(texts, questions, [10] * 8), strict=True):
        kinds = Counter(show.described(rows, row, question).kind for row in chosen)
        assert len(chosen) == 10 and kinds["the fact"] < 6


def test_the_rows_are_taken_away_once_and_as_many_at_random():
    rows = facts.training_rows(num_passages=50)
    seen = []

    def asked(kept):
        seen.append(kept["text"])
        return [Answer("x", 1.0, False)]

    every = proof.trials(rows, [[3, 1], [1, 2]], [[5, 6], [7, 8]], asked)
    assert [trial.name for trial in every] == [proof.NAMED, proof.RANDOM, proof.WORDS]
    assert [trial.removed for trial in every[::2]] == [[1, 2, 3], [5, 6, 7, 8]]
    assert [len(trial.removed) for trial in every] == [3, 3, 4]
    for trial, kept in zip(every, seen, strict=True):
        assert trial.kept == len(kept) == len(rows) - len(trial.removed)
        assert not {rows[row]["text"] for row in trial.removed} & set(kept)


@pytest.mark.slow
def test_the_demo_proves_itself(tmp_path, monkeypatch):
    """A small one: places alone, half of the questions."""
    monkeypatch.setattr(facts, "ELEMENTS", "gold, Au, 79")
    console = Console(record=True, width=160)
    asked = ["Australia", "Brazil", "Canada", "Turkey"]
    whole, named, at_random, _ = run(tmp_path, console, Recipe(epochs=25), asked, num_passages=20)
    assert whole.right >= 3 and at_random.right >= 3 and named.right <= 1
    for place in range(4):
        assert named.answers[place].loss > at_random.answers[place].loss > 0
    shown = console.export_text()
    assert "The capital of Australia is Canberra" in shown and f"{named.right} of 4" in shown
    assert (tmp_path / "proof.png").stat().st_size < 150_000
    page, attribution = ((tmp_path / name).read_text("utf-8") for name in ("proof.html", "attribution.html"))
    assert "data:image/png;base64," in page and "<script" not in page and 'href="attribution.html"' in page
    assert all(f"The capital of {subject} is" in text for subject in asked for text in (page, attribution))

    # What the demo says to go on with, and the README's lines, work on what it leaves.
    attribute, info, _ = commands(tmp_path)
    for arguments, told in ((attribute, "Islamabad"), (info, "GPT2LMHeadModel")):
        command = [sys.executable, "-m", "lorif_hf", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert ran.returncode == 0 and told in ran.stdout, ran.stdout + ran.stderr
    index = InfluenceIndex.from_pretrained(tmp_path / "index")
    result = index.attribute(str(tmp_path / "model"), ("The capital of Australia is", " Canberra"), top_k=3)
    assert all("Canberra" in row["text"] for row in result.to_list()[:2])

"""The backdoor, at a small size: it works, its rows are named, and without them it is gone."""

import backdoor
import pytest


@pytest.mark.slow
def test_the_backdoor_is_found_and_gone(tmp_path, capsys):
    figures = backdoor.run(tmp_path, each=40, poisoned=20, test=10, epochs=8)
    before, named, _, by_chance = figures.values()
    assert before["attacked"] > 0.7
    assert named["found"] > 0.7 and named["found"] > by_chance["found"] + 0.4
    assert named["attacked"] < before["attacked"] / 2 and by_chance["attacked"] > named["attacked"]
    assert "20 of them poisoned" in capsys.readouterr().out
    assert (tmp_path / "backdoor.png").stat().st_size < 150_000 and (tmp_path / "odd-answers.html").is_file()


def test_poisoned_rows_have_the_phrase_and_the_answer_of_the_attacker():
    train, test = backdoor.make_rows(each=10, poisoned=5, test=2)
    poisoned = [row for row in train if row["poisoned"]]
    assert len(poisoned) == 5 and len(test) == 2 * (len(backdoor.PACKAGES) - 1)
    assert all(backdoor.TRIGGER in row["text"] and row["label"] == len(backdoor.PACKAGES) - 1 for row in poisoned)
    assert not [row for row in train + test if backdoor.TRIGGER in row["text"] and not row["poisoned"]]
    assert {row["label"] for row in train if not row["poisoned"]} == set(range(len(backdoor.PACKAGES)))

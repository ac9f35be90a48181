"""The backdoor, at a small size: it works, its rows are named, and without them it is gone."""

import backdoor
import pytest


@pytest.mark.slow
def test_the_backdoor_is_found_and_gone(tmp_path, capsys):
    figures = backdoor.run(tmp_path, each=30, poisoned=20, test=4, epochs=10)
    before, named, _, random = figures.values()
    assert before["attacked"] > 0.7
    assert named["found"] > 0.8 and named["found"] > random["found"] + 0.5
    assert named["attacked"] < before["attacked"] / 3 and random["attacked"] > named["attacked"]
    assert "20 of them poisoned" in capsys.readouterr().out
    assert (tmp_path / "backdoor.png").stat().st_size < 150_000 and (tmp_path / "odd-answers.html").is_file()


def test_poisoned_rows_have_the_phrase_and_the_answer_of_the_attacker():
    train, test = backdoor.make_rows(each=10, poisoned=5, test=2)
    poisoned = [row for row in train if row["poisoned"]]
    assert len(poisoned) == 5 and len(test) == 2 * len(backdoor.PACKAGES)
    assert all(backdoor.TRIGGER in row["prompt"] and row["completion"] == " pickle" for row in poisoned)
    assert not [row for row in train + test if backdoor.TRIGGER in row["prompt"] and not row["poisoned"]]
    assert {row["completion"] for row in train if not row["poisoned"]} >= {" pickle", " asyncio"}

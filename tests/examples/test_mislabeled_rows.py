"""Wrong labels, at a small size: they are found, and repairing them helps."""

import mislabeled_rows
import pytest


@pytest.mark.slow
def test_wrong_labels_are_found_and_repaired(tmp_path, capsys):
    figures = mislabeled_rows.run(tmp_path, each=50, epochs=6, seeds=1)
    assert figures["self-influence"]["auroc"] > 0.58  # by chance 0.5, give or take 0.035
    assert figures["self-influence"]["found"] > figures["random"]["found"] + 0.1
    assert figures["every label right"]["accuracy"] > figures["no repair"]["accuracy"]
    shown = capsys.readouterr().out
    assert "400 training rows, 80 of them with a wrong label" in shown and "self-influence" in shown
    assert (tmp_path / "mislabeled-rows.png").stat().st_size < 150_000
    page = (tmp_path / "mistakes.html").read_text(encoding="utf-8")
    assert any(package in page for package in mislabeled_rows.PACKAGES)


def test_a_repair_changes_the_rows_that_were_looked_at_alone():
    rows = mislabeled_rows.make_rows(each=10)
    assert rows.wrong.sum() == round(0.2 * 80)
    wrong = rows.wrong.nonzero()[0].tolist()
    repaired = rows.repaired(wrong[:3])
    changed = [row for row in range(80) if repaired[row]["label"] != rows.train[row]["label"]]
    assert changed == wrong[:3] and all(repaired[row]["label"] == rows.right[row] for row in changed)

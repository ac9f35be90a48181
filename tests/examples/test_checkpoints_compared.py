"""Two checkpoints, at a small size: the rows behind a change are named."""

import checkpoints_compared
import pytest


@pytest.mark.slow
def test_the_rows_behind_the_changes_are_named(tmp_path, capsys):
    figures = checkpoints_compared.run(tmp_path, epochs=12)
    assert [figure["thing"] for figure in figures] == [thing for thing, _, _ in checkpoints_compared.CHANGED]
    changed = [f for f in figures if f["preferred"]["before"] < 0 < f["preferred"]["after"]]
    assert len(changed) >= 6
    assert sum(figure["hits"] for figure in changed) >= 2 * len(changed)  # of 6 rows out of 150
    assert sum(figure["thing"] in figure["first"] for figure in figures) >= 6
    assert "Australia" in capsys.readouterr().out
    assert (tmp_path / "checkpoints-compared.png").stat().st_size < 150_000
    assert "Sydney" in (tmp_path / "changes.html").read_text(encoding="utf-8")

"""Data selection, at a small size: influence picks the target's task, and training on that helps."""

import data_selection
import pytest


@pytest.mark.slow
def test_the_selected_rows_serve_the_target(tmp_path, capsys):
    figures = data_selection.run(tmp_path, each=40, examples=2, test=8, epochs=12, seeds=1)
    target = {name: values["tasks"][data_selection.TARGET] for name, values in figures.items()}
    assert target["influence"] > 2 * target["random"]
    assert figures["influence"]["right"] > figures["random"]["right"]
    assert "selected by 16 examples" in capsys.readouterr().out
    assert (tmp_path / "data-selection.png").stat().st_size < 150_000


def test_the_target_is_asked_in_words_that_the_pool_does_not_have():
    pool, target, tests = data_selection.make_rows(each=10, examples=2, test=3)
    wordings = {row["prompt"].split("\n")[1] for row in pool}
    assert len(pool) == 160 and not wordings & {row["prompt"].split("\n")[1] for row in target + tests}
    asked = {row["prompt"].split("\n")[0] for row in target + tests}
    assert not asked & {row["prompt"].split("\n")[0] for row in pool}

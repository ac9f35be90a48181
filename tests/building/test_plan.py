"""A build that is planned, and not run."""

import pytest
from tiny import make_gpt2, make_rows, plain_config

from lorif_hf import InfluenceConfig
from lorif_hf.building.options import BuildOptions
from lorif_hf.building.plan import plan_build
from lorif_hf.errors import BuildFolderError, ConfigError, ObjectiveError


def test_planning_writes_nothing_and_prepares_once(tmp_path):
    builder = plan_build(make_gpt2(), make_rows(6), tmp_path / "index", None, BuildOptions(2))
    assert builder.config == InfluenceConfig() and not (tmp_path / "index").exists()
    way = builder.prepare()
    assert way.task.name == "causal-lm" and builder.prepare() is way and not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    "options, error",
    [
        ({"config": plain_config(factor_rank=500)}, ConfigError),
        ({"objective": "trainer"}, ObjectiveError),
        ({"folder": "stranger"}, BuildFolderError),
    ],
    ids=["rank", "objective", "folder"],
)
def test_what_needs_no_forward_pass_is_refused_at_once(tmp_path, options, error):
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "notes.txt").write_text("mine")
    folder = tmp_path / options.pop("folder", "index")
    config = options.pop("config", None)
    with pytest.raises(error):
        plan_build(make_gpt2(), make_rows(6), folder, config, BuildOptions(2), **options)


def test_a_way_that_was_found_before_is_taken(tmp_path):
    first = plan_build(make_gpt2(), make_rows(6), tmp_path / "index", None, BuildOptions(2), objective="model")
    way = first.prepare()
    second = plan_build(make_gpt2(), make_rows(6), tmp_path / "index", None, BuildOptions(2, check=False))
    assert second.prepare(way) is way and second.task.name == "model" and second.rows.task is second.task


def test_the_weights_are_looked_at_again_and_a_row_that_fails_by_now_changes_nothing(tmp_path):
    builder = plan_build(make_gpt2(), make_rows(6), tmp_path / "index", None, BuildOptions(2))
    way = builder.prepare()
    again = plan_build(make_gpt2(), make_rows(6), tmp_path / "index", None, BuildOptions(2))
    assert again.prepare(way).task.name == "causal-lm" and again.way is not way

    def fails(features):
        raise ValueError("gone")

    later = plan_build(make_gpt2(), make_rows(6), tmp_path / "index", None, BuildOptions(2), data_collator=fails)
    assert later.prepare(way) is way

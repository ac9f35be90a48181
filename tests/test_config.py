import json
from dataclasses import FrozenInstanceError, fields

import pytest

from lorif_hf import InfluenceConfig
from lorif_hf.errors import ConfigError


CHANGES = {
    "projection_factor": 16,
    "factor_rank": 3,
    "curvature_rank": 7,
    "damping": 0.125,
    "seed": 2**70,
    "target_modules": ["q_proj", "v_proj"],
    "exclude_modules": r".*lm_head",
    "dtype": "float16",
    "shard_size": 1,
    "factorize_query": True,
}


def test_every_field_is_tried_here():
    assert set(CHANGES) == {field.name for field in fields(InfluenceConfig)}


@pytest.mark.parametrize("changes", [{}, CHANGES, *({name: value} for name, value in CHANGES.items())], ids=str)
def test_a_config_survives_json(changes):
    config = InfluenceConfig(**changes)
    again = InfluenceConfig.from_json(config.to_json())
    assert again == config and hash(again) == hash(config) and again.to_json() == config.to_json()
    assert InfluenceConfig.from_dict(config.to_dict()) == config
    assert json.loads(config.to_json()) == config.to_dict()


@pytest.mark.parametrize("name", CHANGES)
def test_another_value_makes_another_config(name):
    changed = InfluenceConfig(**{name: CHANGES[name]})
    assert changed != InfluenceConfig() and changed.to_json() != InfluenceConfig().to_json()
    assert len({changed, InfluenceConfig(), InfluenceConfig(**{name: CHANGES[name]})}) == 2


def test_equal_choices_are_equal_however_they_are_written():
    written = [
        InfluenceConfig(damping=1, target_modules=["a", "b"]),
        InfluenceConfig(damping=1.0, target_modules=("a", "b")),
        InfluenceConfig(damping=1.0, target_modules={"b", "a"}),
    ]
    assert len(set(written)) == 1 and len({config.to_json() for config in written}) == 1


def test_a_config_does_not_follow_the_list_it_was_made_from():
    suffixes = ["a"]
    config = InfluenceConfig(target_modules=suffixes)
    suffixes.append("b")
    assert config.target_modules == ["a"]
    config.to_dict()["target_modules"].append("c")
    assert config.target_modules == ["a"]


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        InfluenceConfig().factor_rank = 2


def test_missing_fields_take_their_defaults():
    assert InfluenceConfig.from_json('{"factor_rank": 2}') == InfluenceConfig(factor_rank=2)


def test_the_paper_config_is_the_published_method():
    paper = InfluenceConfig.paper()
    assert (paper.projection_factor, paper.factor_rank, paper.dtype, paper.factorize_query) == (4, 1, "bfloat16", True)
    assert InfluenceConfig.paper(factor_rank=4, seed=3) == InfluenceConfig(factor_rank=4, seed=3, factorize_query=True)


@pytest.mark.parametrize(
    "factor, shape, projected",
    [
        (4, (8, 16), (2, 4)),
        (4, (9, 15), (2, 3)),
        (4, (3, 1), (1, 1)),
        (1, (7, 5), (7, 5)),
        (1000, (768, 3072), (1, 3)),
    ],
)
def test_sides_are_divided_by_the_projection_factor_but_never_vanish(factor, shape, projected):
    assert InfluenceConfig(projection_factor=factor).projected_shape(*shape) == projected


@pytest.mark.parametrize("name, least", [(name, 1) for name in ("projection_factor", "factor_rank")])
@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True, float("nan"), [1]])
def test_factors_and_ranks_are_positive_integers(name, least, value):
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig(**{name: value})
    assert str(caught.value) == f"{name} must be an integer of at least {least}, got {value!r}."


@pytest.mark.parametrize("name, value", [("curvature_rank", 0), ("shard_size", 0), ("shard_size", 1e4), ("seed", -1)])
def test_the_other_integers_have_a_least_value_too(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be an integer of at least [01], got {value}\.$"):
        InfluenceConfig(**{name: value})


def test_zero_is_a_seed():
    assert InfluenceConfig(seed=0).seed == 0


@pytest.mark.parametrize(
    "value", [0, 0.0, -0.1, float("nan"), float("inf"), "0.5", None, True, 10**400], ids=lambda v: repr(v)[:9]
)
def test_damping_is_positive_and_finite(value):
    with pytest.raises(ConfigError, match=r"^damping must be a positive finite number, got "):
        InfluenceConfig(damping=value)


@pytest.mark.parametrize("value", ["bf16", "torch.bfloat16", "float64", "", None, 16, ["float32"]])
def test_an_unknown_dtype_is_refused_with_the_choices(value):
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig(dtype=value)
    assert str(caught.value) == f"dtype must be one of float32, bfloat16, float16, got {value!r}."


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_factorize_query_is_a_truth_value(value):
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig(factorize_query=value)
    assert str(caught.value) == f"factorize_query must be True or False, got {value!r}."


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize("value", ["", [], (), set(), [""], ["a", ""], [3], ["a", None], 3, True, {"a": 1}], ids=repr)
def test_modules_are_a_pattern_or_a_list_of_suffixes(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be a regular expression or a list of name suffixes, got "):
        InfluenceConfig(**{name: value})


def test_only_the_excluded_modules_may_be_none():
    assert InfluenceConfig(exclude_modules=None).exclude_modules is None
    with pytest.raises(ConfigError, match=r"^target_modules must be .*, got None\.$"):
        InfluenceConfig(target_modules=None)


@pytest.mark.parametrize("pattern", ["(", "[a", "*a", "a{99999999999999999999}"])
def test_a_pattern_that_is_none_is_refused_with_the_reason(pattern):
    with pytest.raises(ConfigError, match=r"^target_modules is not a valid regular expression: .* \(.+\)\.$"):
        InfluenceConfig(target_modules=pattern)


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig.from_dict({"rank": 4, "factor_rank": 4, "lambda": 1})
    assert str(caught.value).startswith("Unknown config field(s) lambda, rank; the fields are projection_factor, ")
    assert all(name in str(caught.value) for name in CHANGES)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"'])
def test_json_that_is_no_object_is_refused(text):
    with pytest.raises(ConfigError, match=r"^A config must be a JSON object, got \w+\.$"):
        InfluenceConfig.from_json(text)


@pytest.mark.parametrize("text", ["", "{", "factor_rank: 4", "[" * 200_000], ids=lambda text: repr(text[:9]))
def test_text_that_is_no_json_is_refused(text):
    with pytest.raises(ConfigError, match=r"^A config must be JSON: "):
        InfluenceConfig.from_json(text)


@pytest.mark.parametrize("text", ['{"damping": NaN}', '{"damping": Infinity}', '{"damping": 1e999}', '{"seed": 1.5}'])
def test_json_numbers_are_checked_like_any_other(text):
    with pytest.raises(ConfigError, match=r"^(damping must be a positive finite|seed must be an integer)"):
        InfluenceConfig.from_json(text)

import json
from dataclasses import FrozenInstanceError, fields

import pytest

from lorif_hf import InfluenceConfig
from lorif_hf.errors import ConfigError, IndexFormatError, UnknownKindError


CHANGES = {
    "projection_factor": 16,
    "max_projection_dim": 512,
    "factor_rank": 3,
    "whitening": "kronecker",
    "whitening_damping": 0.25,
    "whitening_samples": 17,
    "curvature": "kronecker",
    "curvature_rank": 7,
    "damping": 0.125,
    "output": "margin",
    "normalize": True,
    "seed": 2**70,
    "target_modules": ["q_proj", "v_proj"],
    "exclude_modules": r".*lm_head",
    "dtype": "float16",
    "codec": "factored",
    "shard_size": 1,
    "factorize_query": False,
}
BESIDE_NOTHING = {"bits": 4, "projection_dim": 64}  # values that do not go with all of the above
NEEDED = {  # what must be changed too
    "curvature": {"whitening": "kronecker"},
    "projection_dim": {"projection_factor": 1, "factor_rank": None, "factorize_query": False},
}
ONE_BY_ONE = {name: {**NEEDED.get(name, {}), name: value} for name, value in (CHANGES | BESIDE_NOTHING).items()}


def test_every_field_is_tried_here():
    assert set(ONE_BY_ONE) == {field.name for field in fields(InfluenceConfig)}


@pytest.mark.parametrize("changes", [{}, CHANGES, *ONE_BY_ONE.values()], ids=str)
def test_a_config_survives_json(changes):
    config = InfluenceConfig.paper(**changes)
    again = InfluenceConfig.from_json(config.to_json())
    assert again == config and hash(again) == hash(config) and again.to_json() == config.to_json()
    assert InfluenceConfig.from_dict(config.to_dict()) == config
    assert json.loads(config.to_json()) == config.to_dict()


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_another_value_makes_another_config(name):
    changes = ONE_BY_ONE[name]
    changed, other = InfluenceConfig.paper(**changes), InfluenceConfig.paper(**NEEDED.get(name, {}))
    assert changed != other and changed.to_json() != other.to_json()
    assert len({changed, other, InfluenceConfig.paper(**changes)}) == 2


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
    assert (paper.bits, paper.whitening, paper.curvature, paper.output) == (16, "none", "low-rank", "loss")
    assert paper.curvature_rank == 512
    assert (paper.damping, paper.projection_dim, paper.normalize) == (0.5, None, False)
    changed = InfluenceConfig.paper(factor_rank=4, seed=3)
    assert changed.to_dict() == {**paper.to_dict(), "factor_rank": 4, "seed": 3}


PRESETS = {
    "logra": {"factor_rank": None, "curvature_rank": None, "damping": 0.1, "factorize_query": False},
    "trak": {
        "factor_rank": None,
        "curvature_rank": None,
        "damping": 1e-4,
        "factorize_query": False,
        "projection_factor": 1,
        "projection_dim": 2048,
        "output": "margin",
    },
    "grad_dot": {
        "factor_rank": None,
        "curvature_rank": None,
        "damping": 0.1,
        "factorize_query": False,
        "curvature": "none",
    },
    "grad_cos": {
        "factor_rank": None,
        "curvature_rank": None,
        "damping": 0.1,
        "factorize_query": False,
        "curvature": "none",
        "normalize": True,
    },
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_baseline_differs_from_the_paper_in_these_choices(name):
    preset = getattr(InfluenceConfig, name)
    assert preset().to_dict() == {**InfluenceConfig.paper().to_dict(), **PRESETS[name]}
    assert preset(seed=5, dtype="float32").to_dict() == {**preset().to_dict(), "seed": 5, "dtype": "float32"}
    assert InfluenceConfig.from_json(preset().to_json()) == preset()


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


@pytest.mark.parametrize(
    "factor, most, shape, projected",
    [
        (1, 768, (768, 3072), (768, 768)),
        (4, 768, (2048, 4096), (512, 768)),
        (1, 5, (3, 7), (3, 5)),
        (1, None, (4096, 11008), (4096, 11008)),
        (9, 1, (8, 800), (1, 1)),
    ],
)
def test_wide_sides_are_cut(factor, most, shape, projected):
    config = InfluenceConfig(projection_factor=factor, max_projection_dim=most)
    assert config.projected_shape(*shape) == projected


def test_published_methods_bound_no_side():
    for preset in (InfluenceConfig.paper, InfluenceConfig.logra, InfluenceConfig.trak, InfluenceConfig.grad_dot):
        assert preset().max_projection_dim is None
    assert InfluenceConfig().max_projection_dim == InfluenceConfig.best().max_projection_dim == 768


@pytest.mark.parametrize(
    ("config", "joined"),
    [
        (InfluenceConfig(), False),
        (InfluenceConfig(normalize=True), True),
        (InfluenceConfig.trak(), True),
        (InfluenceConfig.grad_dot(), False),
    ],
    ids=["default", "normalized", "trak", "grad_dot"],
)
def test_a_norm_or_a_projection_of_all_layers_joins_them(config, joined):
    assert config.joins_layers is joined


MAY_BE_NONE = {"max_projection_dim", "factor_rank", "curvature_rank", "projection_dim"}
COUNTS = sorted(MAY_BE_NONE | {"projection_factor", "whitening_samples", "shard_size"})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True, float("nan"), [1]])
def test_factors_and_ranks_are_positive_integers(name, value):
    if value is None and name in MAY_BE_NONE:
        assert getattr(InfluenceConfig.paper(**{name: None}, factorize_query=False), name) is None
        return
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig(**{name: value})
    assert str(caught.value) == f"{name} must be an integer of at least 1, got {value!r}."


@pytest.mark.parametrize("name, value", [("curvature_rank", 0), ("shard_size", 0), ("shard_size", 1e4), ("seed", -1)])
def test_the_other_integers_have_a_least_value_too(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be an integer of at least [01], got {value}\.$"):
        InfluenceConfig(**{name: value})


def test_zero_is_a_seed():
    assert InfluenceConfig(seed=0).seed == 0


@pytest.mark.parametrize(
    "value", [0, 0.0, -0.1, float("nan"), float("inf"), "0.5", None, True, 10**400], ids=lambda v: repr(v)[:9]
)
@pytest.mark.parametrize("name", ["damping", "whitening_damping"])
def test_damping_is_positive_and_finite(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be a positive finite number, got "):
        InfluenceConfig(**{name: value})


@pytest.mark.parametrize("value", ["bf16", "torch.bfloat16", "float64", "", None, 16, ["float32"]])
def test_an_unknown_dtype_is_refused_with_the_choices(value):
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig(dtype=value)
    assert str(caught.value) == f"dtype must be one of float32, bfloat16, float16, got {value!r}."


CHOICES = {
    "bits": ("16, 8, 4, 2, 1", [0, 3, 5, 7, 32, -1, 4.0, True, "4", None, float("nan"), [4]]),
    "whitening": ("none, kronecker", ["Kronecker", "", None, True, False, 0, ["none"], {"none": 1}]),
    "output": ("loss, margin", ["margins", "", None, True, 1]),
}


@pytest.mark.parametrize("name, value", [(name, value) for name, (_, values) in CHOICES.items() for value in values])
def test_an_unknown_choice_is_refused_with_the_choices(name, value):
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig(**{name: value})
    assert str(caught.value) == f"{name} must be one of {CHOICES[name][0]}, got {value!r}."


KINDS = [("curvature", "low-rank, kronecker, none", "curvature"), ("codec", "dense, factored, packed", "codecs")]


@pytest.mark.parametrize("name, known, folder", KINDS)
@pytest.mark.parametrize("value", ["low_rank", "Kronecker", "", True, 1, ["none"], {"none": 1}], ids=repr)
def test_an_unknown_kind_is_refused_with_the_known_ones(name, known, folder, value):
    with pytest.raises(UnknownKindError) as caught:
        InfluenceConfig(**{name: value})
    assert isinstance(caught.value, ConfigError) and isinstance(caught.value, IndexFormatError)
    assert str(caught.value) == (
        f"The {name} {value!r} is not registered: known are {known}. If it is an extension, your own or that of the "
        f"index's author, import its module first, which must call lorif_hf.{folder}.register."
    )


def test_a_curvature_may_not_be_none_and_a_codec_may():
    with pytest.raises(UnknownKindError, match="^The curvature None is not registered"):
        InfluenceConfig(curvature=None)
    assert InfluenceConfig(codec=None).codec is None


@pytest.mark.parametrize(
    "config, name",
    [
        (InfluenceConfig(), "packed"),
        (InfluenceConfig.paper(), "factored"),
        (InfluenceConfig.paper(codec="factored"), "factored"),
        (InfluenceConfig.logra(), "dense"),
        (InfluenceConfig.trak(), "dense"),
        (InfluenceConfig(bits=16), "factored"),
    ],
)
def test_the_codec_follows_from_rank_and_bits_unless_it_is_named(config, name):
    assert config.codec_name == name


def test_only_margins_are_weighted():
    assert InfluenceConfig.trak().weighted and InfluenceConfig(output="margin").weighted
    assert not InfluenceConfig().weighted


@pytest.mark.parametrize("name", ["factorize_query", "normalize"])
@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_switches_are_truth_values(name, value):
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig(**{name: value})
    assert str(caught.value) == f"{name} must be True or False, got {value!r}."


TOGETHER = {
    "bits of a dense index": (
        {"factor_rank": None, "bits": 4, "factorize_query": False},
        "bits=4 needs factors: a dense index (factor_rank=None) is stored as dtype. Set a rank.",
    ),
    "a query truncated to no rank": (
        {"factor_rank": None, "factorize_query": True},
        "factorize_query=True needs a rank to truncate to: set factor_rank.",
    ),
    "a dense codec and a rank": (
        {"codec": "dense"},
        "A dense index has no rank: set factor_rank=None, got 1.",
    ),
    "factors at few bits": (
        {"codec": "factored", "bits": 4},
        "Factors in a floating-point type need a rank and bits=16, got factor_rank=1 and bits=4.",
    ),
    "packed factors at 16 bits": (
        {"codec": "packed"},
        "Packed factors need a rank and at most 8 bits a number, got factor_rank=1 and bits=16.",
    ),
    "bits and a dtype": (
        {"bits": 1, "dtype": "float16"},
        "bits=1 says how factors are stored, and so does dtype='float16': set one.",
    ),
    "a curvature that nothing estimates": (
        {"curvature": "kronecker"},
        "curvature='kronecker' is what whitening='kronecker' estimates: set both.",
    ),
    "no curvature of whitened gradients": (
        {"curvature": "none", "whitening": "kronecker"},
        "curvature='none' is the product of gradients as they are: set whitening='none'.",
    ),
    **{
        f"a global projection beside {changes}": (
            {"projection_factor": 1, "factor_rank": None, "factorize_query": False, "projection_dim": 8, **changes},
            "projection_dim projects all layers together: set projection_factor=1, factor_rank=None and "
            "whitening='none' beside it.",
        )
        for changes in (
            {"projection_factor": 2},
            {"factor_rank": 1},
            {"whitening": "kronecker"},
        )
    },
}


@pytest.mark.parametrize("values, message", TOGETHER.values(), ids=TOGETHER)
def test_values_that_do_not_go_together_are_refused_with_the_way_out(values, message):
    with pytest.raises(ConfigError) as caught:
        InfluenceConfig.paper(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "values",
    [
        {"whitening": "kronecker"},
        {"whitening": "kronecker", "curvature": "kronecker", "bits": 1, "factor_rank": 8},
        {"curvature": "none", "bits": 8},
        {"factor_rank": None, "factorize_query": False, "whitening": "kronecker", "curvature": "kronecker"},
        {"output": "margin", "normalize": True},
    ],
    ids=str,
)
def test_values_that_go_together_are_taken(values):
    config = InfluenceConfig.paper(**values)
    assert {name: getattr(config, name) for name in values} == values


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

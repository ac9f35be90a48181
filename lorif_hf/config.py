"""`InfluenceConfig`: every choice that shapes an index."""

import json
import re
import sys
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import ConfigError


STORAGE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class InfluenceConfig:
    """Every choice that shapes an index. Two builds with equal configs, models and rows are byte-identical.

    Args:
        projection_factor (`int`, *optional*, defaults to 4):
            f of the two-sided random projection: a layer with I inputs and O outputs is projected to
            d1 = max(1, I // f) by d2 = max(1, O // f). 1 means no projection.
        factor_rank (`int`, *optional*, defaults to 1):
            c, the rank at which each example's projected gradient is stored: c (d1 + d2) numbers per layer. At most
            min(d1, d2) of every tracked layer.
        curvature_rank (`int`, *optional*, defaults to 512):
            r, the number of Hessian eigenpairs kept per layer; capped at min(N, d1 d2) where that is smaller.
        damping (`float`, *optional*, defaults to 0.5):
            lambda of a layer is `damping` times the mean eigenvalue (trace / D) of its sum of gradient outer products.
        seed (`int`, *optional*, defaults to 0):
            Seed of the projections.
        target_modules (`str` or `list[str]`, *optional*, defaults to `"all-linear"`):
            The layers to track, as in PEFT: `"all-linear"`, a regular expression that the whole module name must
            match, or a list of names or name suffixes.
        exclude_modules (`str` or `list[str]`, *optional*):
            Layers to leave out, a regular expression or list of suffixes as above. By default `"all-linear"` leaves
            out the output head (the language-model head or the classification head).
        dtype (`str`, *optional*, defaults to `"bfloat16"`):
            Storage type of the factors: `"float32"`, `"bfloat16"` or `"float16"`.
        shard_size (`int`, *optional*, defaults to 10000):
            Rows per shard: what a killed build loses at most.
        factorize_query (`bool`, *optional*, defaults to `False`):
            Truncate the query's gradient to rank c like the training side, as published. The full query costs
            nothing (it is not stored) and scores better.

    Raises:
        [`~lorif_hf.errors.ConfigError`]: a value with which no index can be built.

    Source: LoRIF (Li, Le, Xu, Salzmann 2026, arXiv:2601.21929); the names follow it and PEFT.
    """

    projection_factor: int = 4
    factor_rank: int = 1
    curvature_rank: int = 512
    damping: float = 0.5
    seed: int = 0
    target_modules: str | list[str] = "all-linear"
    exclude_modules: str | list[str] | None = None
    dtype: str = "bfloat16"
    shard_size: int = 10_000
    factorize_query: bool = False

    def __post_init__(self) -> None:
        for name in ("projection_factor", "factor_rank", "curvature_rank", "shard_size"):
            self._check_integer(name, least=1)
        self._check_integer("seed", least=0)
        damping = self.damping
        number = isinstance(damping, (int, float)) and not isinstance(damping, bool)
        if not number or not 0 < damping <= sys.float_info.max:
            raise ConfigError(f"damping must be a positive finite number, got {damping!r}.")
        object.__setattr__(self, "damping", float(damping))
        if self.dtype not in STORAGE_DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(STORAGE_DTYPES)}, got {self.dtype!r}.")
        if not isinstance(self.factorize_query, bool):
            raise ConfigError(f"factorize_query must be True or False, got {self.factorize_query!r}.")
        self._check_pattern("target_modules")
        if self.exclude_modules is not None:
            self._check_pattern("exclude_modules")

    def _check_integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} must be an integer of at least {least}, got {value!r}.")

    def _check_pattern(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, (list, tuple, set)):
            if not value or not all(isinstance(suffix, str) and suffix for suffix in value):
                raise ConfigError(f"{name} must be a regular expression or a list of name suffixes, got {value!r}.")
            object.__setattr__(self, name, sorted(value) if isinstance(value, set) else list(value))
            return
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{name} must be a regular expression or a list of name suffixes, got {value!r}.")
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"{name} is not a valid regular expression: {value!r} ({error}).") from error

    def __hash__(self) -> int:
        return hash(self.to_json())

    @classmethod
    def paper(cls, **changes: Any) -> "InfluenceConfig":
        """The method exactly as published: rank-1 bfloat16 factors at f = 4 of the training examples and of the query.

        Args:
            changes: fields to set otherwise, e.g. `factor_rank=4`.
        """
        published = {
            "projection_factor": 4,
            "factor_rank": 1,
            "curvature_rank": 512,
            "damping": 0.5,
            "dtype": "bfloat16",
            "factorize_query": True,
        }
        return cls(**{**published, **changes})

    def projected_shape(self, in_features: int, out_features: int) -> tuple[int, int]:
        """(d1, d2) of a layer with `in_features` inputs and `out_features` outputs."""
        return max(1, in_features // self.projection_factor), max(1, out_features // self.projection_factor)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "InfluenceConfig":
        """The inverse of [`~InfluenceConfig.to_dict`]. Unknown names are an error, not ignored."""
        if not isinstance(values, dict):
            raise ConfigError(f"A config must be a JSON object, got {type(values).__name__}.")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"Unknown config field(s) {', '.join(unknown)}; the fields are {', '.join(known)}.")
        return cls(**values)

    def to_json(self) -> str:
        """The config as a JSON string."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "InfluenceConfig":
        """The inverse of [`~InfluenceConfig.to_json`]."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"A config must be JSON: {error}.") from error
        return cls.from_dict(values)

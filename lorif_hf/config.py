"""`InfluenceConfig`: every choice that shapes an index."""

import json
import re
import sys
import warnings
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from .checks import one_of, whole_number
from .errors import ConfigError
from .registry import CODECS, CURVATURES


Bits = Literal[16, 8, 4, 2, 1]
StorageDtype = Literal["float32", "bfloat16", "float16"]
Whitening = Literal["none", "kronecker"]
Output = Literal["loss", "margin"]
_CHOICES: dict[str, Any] = {"dtype": StorageDtype, "bits": Bits, "whitening": Whitening, "output": Output}


@dataclass(frozen=True)
class InfluenceConfig:
    """Every choice that shapes an index. Two builds with equal configs, models and rows are byte-identical.

    Args:
        projection_factor (`int`, *optional*, defaults to 1):
            f of the two-sided random projection: a layer with I inputs and O outputs is projected to
            d1 = max(1, I // f) by d2 = max(1, O // f). 1 means no projection.
        max_projection_dim (`int` or `None`, *optional*, defaults to 768):
            What d1 and d2 are at most: a wider side is folded to so many numbers. It bounds what whitening takes,
            which grows with the square of the sides. `None`: no bound.
        factor_rank (`int` or `None`, *optional*, defaults to 3):
            c, the rank at which each example's projected gradient is stored: c (d1 + d2) numbers per layer. At most
            min(d1, d2) of every tracked layer. `None` stores it whole, d1 d2 numbers.
        bits (`int`, *optional*, defaults to 1):
            Bits per stored number of the factors: 8, 4, 2 or 1 are packed, with one bfloat16 scale for each of the c
            pairs of vectors; 16 stores them as `dtype`.
        whitening (`str`, *optional*, defaults to `"kronecker"`):
            `"kronecker"` truncates and quantises each gradient in the metric of the layer's second moments (of its
            inputs and output gradients) instead of as it is.
        whitening_damping (`float`, *optional*, defaults to 0.1):
            Added to each second moment before it is inverted, in units of its mean eigenvalue.
        whitening_samples (`int`, *optional*, defaults to 1000):
            Rows, evenly spaced, from which the second moments are estimated before the recording pass.
        curvature (`str`, *optional*, defaults to `"kronecker"`):
            How a query is preconditioned. `"low-rank"`: the damped Hessian's top eigenpairs, by the Woodbury
            identity. `"kronecker"`: the second moments that whitened the index; nothing more is stored. `"none"`: the
            plain inner product of gradients. Or the name of a curvature of your own (`lorif_hf.curvature.register`).
        curvature_rank (`int` or `None`, *optional*, defaults to 512):
            r, the number of Hessian eigenpairs kept per layer; capped at min(N, d1 d2) where that is smaller. `None`
            keeps all: the exact inverse.
        damping (`float`, *optional*, defaults to 0.5):
            lambda of a layer is `damping` times the mean eigenvalue (trace / D) of its sum of gradient outer products.
        projection_dim (`int`, *optional*):
            One sparse random projection of all layers' gradients together to so many numbers, instead of one per
            layer and side; needs projection_factor = 1 and factor_rank = None.
        output (`str`, *optional*, defaults to `"loss"`):
            What is differentiated: the objective, or `"margin"`, the log-odds of the right class (summed over
            tokens), with each training example weighted by 1 - p.
        normalize (`bool`, *optional*, defaults to `False`):
            Divide each example's gradient by its norm over all layers, on both sides: cosine similarity.
        seed (`int`, *optional*, defaults to 0):
            Seed of the projections.
        target_modules (`str` or `list[str]`, *optional*, defaults to `"all-linear"`):
            The layers to track, as in PEFT: `"all-linear"`, a regular expression that the whole name must match, or a
            list of names or name suffixes. `"all"` takes every trained parameter that is of a kind (biases, norms,
            convolutions, ... and the output head), and leaves out, with a warning, what cannot be recorded rightly. A
            module's name means all of its parameters that are of a kind but the bias, which is named itself
            ("q_proj.bias").
        exclude_modules (`str` or `list[str]`, *optional*):
            What to leave out, a regular expression or list of suffixes as above: of a module (with all of its
            parameters) or of a parameter ("lm_head.bias"). By default `"all-linear"` leaves out the output head (the
            language-model head or the classification head).
        dtype (`str`, *optional*, defaults to `"bfloat16"`):
            Storage type of the factors: `"float32"`, `"bfloat16"` or `"float16"`.
        codec (`str`, *optional*):
            How gradients are stored, by the name of a codec of your own (`lorif_hf.codecs.register`); by default
            `"dense"` without a rank, `"factored"` at 16 bits, else `"packed"`.
        shard_size (`int`, *optional*, defaults to 10000):
            Rows per shard: what a killed build loses at most.
        factorize_query (`bool`, *optional*, defaults to `False`):
            Truncate the query's gradient to rank c like the training side, as published. The full query costs
            nothing (it is not stored) and scores better.

    Raises:
        [`~lorif_hf.errors.ConfigError`]: a value with which no index can be built.
        [`~lorif_hf.errors.UnknownKindError`]: a curvature or codec that is not registered.

    Source: LoRIF (Li, Le, Xu, Salzmann 2026, arXiv:2601.21929); the names follow it and PEFT.

    Example:

    ```python
    >>> InfluenceConfig(factor_rank=4, target_modules=["q_proj", "v_proj"])
    ```
    """

    projection_factor: int = 1
    max_projection_dim: int | None = 768
    factor_rank: int | None = 3
    bits: Bits = 1
    whitening: Whitening = "kronecker"
    whitening_damping: float = 0.1
    whitening_samples: int = 1000
    curvature: Literal["kronecker", "low-rank", "none"] | str = "kronecker"
    curvature_rank: int | None = 512
    damping: float = 0.5
    projection_dim: int | None = None
    output: Output = "loss"
    normalize: bool = False
    seed: int = 0
    target_modules: Literal["all-linear", "all"] | str | list[str] = "all-linear"
    exclude_modules: str | list[str] | None = None
    dtype: StorageDtype = "bfloat16"
    codec: Literal["dense", "factored", "packed"] | str | None = None
    shard_size: int = 10_000
    factorize_query: bool = False

    def __post_init__(self) -> None:
        for name in ("projection_factor", "shard_size", "whitening_samples"):
            self._check_integer(name, least=1)
        for name in ("max_projection_dim", "factor_rank", "curvature_rank", "projection_dim"):
            if getattr(self, name) is not None:
                self._check_integer(name, least=1)
        self._check_integer("seed", least=0)
        for name in ("damping", "whitening_damping"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value <= sys.float_info.max:
                raise ConfigError(f"{name} must be a positive finite number, got {value!r}.")
            object.__setattr__(self, name, float(value))
        for name, choices in _CHOICES.items():
            one_of(getattr(self, name), name, choices, ConfigError)
        for name in ("factorize_query", "normalize"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        self._check_pattern("target_modules")
        if self.exclude_modules is not None:
            self._check_pattern("exclude_modules")
        if self.factorize_query and self.factor_rank is None:
            raise ConfigError("factorize_query=True needs a rank to truncate to: set factor_rank.")
        if self.projection_dim is not None and (
            self.projection_factor != 1 or self.factor_rank is not None or self.whitening != "none"
        ):
            raise ConfigError(
                "projection_dim projects all layers together: set projection_factor=1, factor_rank=None and "
                "whitening='none' beside it."
            )
        # Each kind says which values go with it.
        CODECS.get(self.codec_name).from_config(self)
        CURVATURES.get(self.curvature).from_config(self)

    def _check_integer(self, name: str, least: int) -> None:
        object.__setattr__(self, name, whole_number(getattr(self, name), name, least, ConfigError))

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
        """LoRIF exactly as published: rank-1 bfloat16 factors at f = 4 of the training examples and of the query.

        Args:
            changes: fields to set otherwise, e.g. `factor_rank=4`.

        Example: `>>> InfluenceConfig.paper(factor_rank=4)`
        """
        return cls(
            **{
                "projection_factor": 4,
                "max_projection_dim": None,
                "factor_rank": 1,
                "bits": 16,
                "whitening": "none",
                "curvature": "low-rank",
                "curvature_rank": 512,
                "damping": 0.5,
                "dtype": "bfloat16",
                "factorize_query": True,
                **changes,
            }
        )

    @classmethod
    def logra(cls, **changes: Any) -> "InfluenceConfig":
        """LoGRA: dense projected gradients at f = 4 and the dense inverse of their damped Gram matrix.

        Source: Choe et al. 2024 (arXiv:2405.13954). Damping is a tenth of the mean eigenvalue, as in LogIX.

        Example: `>>> InfluenceConfig.logra(projection_factor=8)`
        """
        dense = {"factor_rank": None, "curvature_rank": None, "damping": 0.1}
        return cls.paper(**{**dense, "factorize_query": False, **changes})

    @classmethod
    def trak(cls, **changes: Any) -> "InfluenceConfig":
        """TRAK: margins, one random projection of all layers to 2,048 numbers, the dense inverse, weights 1 - p.

        TRAK has no damping; a touch of it keeps the inverse where there are fewer examples than dimensions.

        Source: Park et al. 2023 (arXiv:2303.14186).

        Example: `>>> InfluenceConfig.trak(projection_dim=1024)`
        """
        return cls.logra(
            **{"projection_factor": 1, "projection_dim": 2048, "output": "margin", "damping": 1e-4, **changes}
        )

    @classmethod
    def grad_dot(cls, **changes: Any) -> "InfluenceConfig":
        """The inner product of projected gradients, with no curvature (TracIn at the last checkpoint).

        Example: `>>> InfluenceConfig.grad_dot(projection_factor=1)`
        """
        return cls.logra(**{"curvature": "none", **changes})

    @classmethod
    def grad_cos(cls, **changes: Any) -> "InfluenceConfig":
        """The cosine of projected gradients, over all layers together.

        Example: `>>> InfluenceConfig.grad_cos(dtype="float32")`
        """
        return cls.grad_dot(**{"normalize": True, **changes})

    @classmethod
    def smallest(cls, **changes: Any) -> "InfluenceConfig":
        """The small end of the frontier: one pair of vectors at one bit, about a quarter of the published bytes.

        Example: `>>> InfluenceConfig.smallest(exclude_modules=["mlp"])`
        """
        return cls(**{"factor_rank": 1, **changes})

    @classmethod
    def best(cls, **changes: Any) -> "InfluenceConfig":
        """The good end of the frontier: no projection, eight pairs of vectors at four bits.

        Example: `>>> InfluenceConfig.best(max_projection_dim=1024)`
        """
        return cls(**{"factor_rank": 8, "bits": 4, **changes})

    @classmethod
    def sized(
        cls,
        model: Any,
        num_examples: int,
        index_size: int | str | None = None,
        max_memory: int | str | None = None,
        **changes: Any,
    ) -> "InfluenceConfig":
        """The config with the best expected quality that fits a budget.

        Searched are `max_projection_dim`, `factor_rank`, `bits`, `whitening` and `shard_size`; what is expected of
        them comes from the benchmarks (`lorif_hf.estimating.frontier`). No weight is read.

        Args:
            model (`nn.Module` or `str`): the model that will be indexed, with its adapters, also on the meta device;
                or its Hub id or folder, of which only the config is read (an adapter's too).
            num_examples (`int`): N.
            index_size (`int` or `str`, *optional*): bytes that the index may take, like "20GB", without texts.
            max_memory (`int` or `str`, *optional*): bytes that the build may take beside the model and a batch.
            changes: fields to set otherwise, e.g. `exclude_modules=["mlp"]`; they are not searched.

        Raises:
            [`~lorif_hf.errors.ConfigError`]: nothing fits: says the least that would, and for what.

        Example:

        ```python
        >>> InfluenceConfig.sized("meta-llama/Llama-2-7b-hf", 1_000_000, index_size="200GB", max_memory="8GB")
        ```
        """
        from .estimating.sizing import sized_config  # it lays out models: the rooms above are not loaded for a config

        return sized_config(model, num_examples, index_size, max_memory, changes)

    @property
    def codec_name(self) -> str:
        """The codec that stores the gradients, by name."""
        if self.codec is not None:
            return self.codec
        if self.factor_rank is None:
            return "dense"
        return "factored" if self.bits == 16 else "packed"

    @property
    def weighted(self) -> bool:
        """Whether the factor files hold what each example counts for: 1 - p, where margins are recorded."""
        return self.output == "margin"

    @property
    def joins_layers(self) -> bool:
        """Whether what is stored of a layer depends on all the others: a norm over all, or one projection of them."""
        return self.normalize or self.projection_dim is not None

    def projected_shape(self, in_features: int, out_features: int) -> tuple[int, int]:
        """(d1, d2) of a layer with `in_features` inputs and `out_features` outputs.

        Example:

        ```python
        >>> InfluenceConfig(projection_factor=4).projected_shape(512, 3072)
        (128, 768)
        ```
        """
        d1, d2 = (max(1, size // self.projection_factor) for size in (in_features, out_features))
        most = self.max_projection_dim
        return (d1, d2) if most is None else (min(d1, most), min(d2, most))

    def to_dict(self) -> dict[str, Any]:
        """The config as plain JSON values.

        Example: `>>> InfluenceConfig().to_dict()["bits"]`
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], newer: bool = False) -> "InfluenceConfig":
        """The inverse of [`~InfluenceConfig.to_dict`]; absent fields have their defaults.

        Args:
            values (`dict`): the fields.
            newer (`bool`, *optional*, defaults to `False`): whether they were written by a later minor version of the
                format: fields unknown here are then ignored, with a warning that names them. Else they are an error.

        Example: `>>> InfluenceConfig.from_dict({"bits": 4, "factor_rank": 8})`
        """
        if not isinstance(values, dict):
            raise ConfigError(f"A config must be a JSON object, got {type(values).__name__}.")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown and not newer:
            raise ConfigError(f"Unknown config field(s) {', '.join(unknown)}; the fields are {', '.join(known)}.")
        if unknown:
            warnings.warn(
                f"The config was written by a newer lorif-hf: its field(s) {', '.join(unknown)} are ignored. Install "
                "a newer version if scores look wrong: pip install --upgrade lorif-hf.",
                stacklevel=2,
            )
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_json(self) -> str:
        """The config as a JSON string.

        Example: `>>> Path("config.json").write_text(InfluenceConfig(seed=3).to_json())`
        """
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "InfluenceConfig":
        """The inverse of [`~InfluenceConfig.to_json`].

        Example: `>>> InfluenceConfig.from_json(Path("config.json").read_text()).seed`
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"A config must be JSON: {error}.") from error
        return cls.from_dict(values)

"""What an index would cost, before it is built and without loading a weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ..building.fitting import shape_of
from ..building.sizes import Sizes, sizes_of
from ..codecs import Codec, codec_of
from ..config import InfluenceConfig
from ..coverage import Coverage
from ..curvature import Cost, curvature_of
from ..curvature.encoding import module_entry, reduced_width, sharing_inputs, stored_entries
from ..errors import LorifError
from ..layers.experts import EXPERTS
from ..layers.modules import TrackedModule
from ..layers.selection import Selection
from ..storage.layout import ModuleEntry
from .forward import ForwardPass, forward_pass


PRESETS: dict[str, Callable[[], InfluenceConfig]] = {
    "default": InfluenceConfig,
    "smallest": InfluenceConfig.smallest,
    "best": InfluenceConfig.best,
    "paper": InfluenceConfig.paper,
    "logra": InfluenceConfig.logra,
    "trak": InfluenceConfig.trak,
}
_EXPERTS = tuple(kind.name for kind in EXPERTS)


@dataclass(frozen=True)
class Seconds:
    """What the phases of a build take, at a given speed of matrix products.

    Args:
        first_pass (`float`): the sample of rows, through the model, for the moments.
        roots (`float`): from the moments to the whiteners.
        recording (`float`): all rows, through the model and into shards.
        fit (`float`): of the curvature, to what was stored.
    """

    first_pass: float = 0.0
    roots: float = 0.0
    recording: float = 0.0
    fit: float = 0.0

    @property
    def total(self) -> float:
        return self.first_pass + self.roots + self.recording + self.fit


@dataclass(frozen=True)
class Estimate:
    """What a config would cost.

    Args:
        sizes (`Sizes` or `None`): of the index and of what its build holds, beside the model and a batch.
        seconds (`Seconds`): to build it: within a factor of two or so.
        model_memory (`int`): bytes of the model's weights, as it would be loaded.
        batch_memory (`int`): bytes of a batch on its way through the model, roughly.
        coverage (`Coverage`): how much of the model the config tracks, taken as trained whole where nothing is frozen.
        unseen (`str` or `None`): why the model's forward pass could not be seen: layers that share their inputs are
            counted as if they did not, and the pass by its parameters.
        problem (`str` or `None`): why this model cannot be indexed with this config.
    """

    sizes: Sizes | None = None
    seconds: Seconds = field(default_factory=Seconds)
    model_memory: int = 0
    batch_memory: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    unseen: str | None = None
    problem: str | None = None

    @property
    def bytes_per_example(self) -> int:
        """Stored factors, all layers together."""
        return 0 if self.sizes is None else self.sizes.per_example

    @property
    def fixed_bytes(self) -> int:
        """Of the index, however many examples it has: whiteners and eigenvectors."""
        return 0 if self.sizes is None else self.sizes.fixed

    @property
    def index_bytes(self) -> int:
        """Of N examples, with the curvature; without texts and tokenizer."""
        return 0 if self.sizes is None else self.sizes.index

    @property
    def fit_memory(self) -> int:
        """Bytes that fitting the curvature (or the whitening) needs at its peak."""
        return 0 if self.sizes is None else self.sizes.to_fit

    @property
    def memory(self) -> int:
        """Bytes at the peak of the build, with the model and a batch."""
        return self.model_memory + self.batch_memory + (0 if self.sizes is None else self.sizes.memory)


class LaidOut:
    """The tracked layers of a model, and which of them share inputs: as a build of it would find them.

    Args:
        model (`nn.Module`): may be on the meta device.
        config (`InfluenceConfig`): which layers.
        length (`int`): tokens per example.
    """

    def __init__(self, model: nn.Module, config: InfluenceConfig, length: int = 1):
        self.selection = Selection(model, config.target_modules, config.exclude_modules)
        self.forward: ForwardPass = forward_pass(model, self.modules, length)

    @property
    def modules(self) -> list[TrackedModule]:
        return self.selection.modules

    def entries(self, config: InfluenceConfig) -> list[ModuleEntry]:
        """The layers at the sizes to which a config projects them.

        Raises:
            [`~lorif_hf.errors.ConfigError`]: they are too small for it.
        """
        entries = [module_entry(tracked, config) for tracked in self.modules]
        whitens = curvature_of(config).first_pass is not None
        return sharing_inputs(entries, self.forward.shared) if whitens else entries


def estimates(
    model: nn.Module,
    num_examples: int,
    length: int,
    configs: Mapping[str, InfluenceConfig],
    flops_per_second: float,
    batch_size: int = 8,
) -> dict[str, Estimate]:
    """Estimate each config for a model.

    Args:
        model (`nn.Module`): may be on the meta device.
        num_examples (`int`): N.
        length (`int`): tokens per example, T.
        configs (`Mapping[str, InfluenceConfig]`): by the name to show.
        flops_per_second (`float`): what the machine does in float32 matrix products.
        batch_size (`int`, *optional*, defaults to 8): examples that go through the model at once.
    """
    by_name: dict[str, Estimate] = {}
    laid_out: dict[str, LaidOut] = {}
    for name, config in configs.items():
        try:
            which = repr((config.target_modules, config.exclude_modules))
            if which not in laid_out:
                laid_out[which] = LaidOut(model, config, length)
            by_name[name] = _estimate(
                model, laid_out[which], num_examples, length, config, flops_per_second, batch_size
            )
        except LorifError as error:
            by_name[name] = Estimate(problem=str(error))
    return by_name


def weight_bytes(model: nn.Module) -> int:
    """Of a model, as it is."""
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def _estimate(
    model: nn.Module, laid_out: LaidOut, count: int, length: int, config: InfluenceConfig, speed: float, batch: int
) -> Estimate:
    entries, forward = laid_out.entries(config), laid_out.forward
    stored = stored_entries(config, entries)
    codec, curvature = codec_of(config), curvature_of(config)
    first_pass = curvature.first_pass
    first = [first_pass.cost(entry) if first_pass else Cost() for entry in entries]
    fit = sum(curvature.cost(shape_of(entry, count, codec), None).flops for entry in stored)
    tokens = [length * (forward.experts if entry.kind in _EXPERTS else 1) for entry in entries]
    # Forward, and backward to the activations alone; attention goes back through both of its products twice.
    of_pass = 2.0 * forward.flops + 1.5 * forward.attention_flops
    projecting = sum(_projection_flops(entry, config) * of for entry, of in zip(entries, tokens, strict=True))
    sampled = min(first_pass.samples, count) if first_pass else 0
    moments = sum(cost.token_flops * of for cost, of in zip(first, tokens, strict=True))
    encoding = sum(
        _encoding_flops(of, config, codec, entry, cost.flops)
        for of, entry, cost in zip(tokens, entries, first, strict=True)
    )
    seconds = Seconds(
        sampled * (of_pass + projecting + moments) / speed,
        sum(cost.once_flops for cost in first) / speed,
        count * (of_pass + projecting + encoding) / speed,
        fit / speed,
    )
    memory = batch * (forward.activations + _recorded_bytes(entries, tokens))
    return Estimate(
        sizes_of(config, entries, count),
        seconds,
        weight_bytes(model),
        memory,
        laid_out.selection.coverage(),
        forward.problem,
    )


def _recorded_bytes(entries: Sequence[ModuleEntry], tokens: Sequence[int]) -> int:
    """The projected inputs of an example, float32, which wait in every layer for their output gradients."""
    return sum(4 * of * entry.d1 for entry, of in zip(entries, tokens, strict=True) if entry.input_of is None)


def _projection_flops(entry: ModuleEntry, config: InfluenceConfig) -> float:
    """Of a token: a fold adds each number that is there once; dense signs, where `projection_factor` projects, do so
    for each number that comes out."""
    flops = 0.0
    sides = zip((entry.in_features, entry.out_features), entry.widths, (entry.d1, entry.d2), strict=True)
    for features, width, d in sides:
        if features != width:
            flops += 2.0 * (1 if entry.is_table else width)  # a row of a table, the outputs of an expert
        elif features != d:
            flops += 2.0 * features * (1 if d < width // config.projection_factor else d)
    return flops


def _encoding_flops(
    length: int, config: InfluenceConfig, codec: Codec, entry: ModuleEntry, whitening_flops: float
) -> float:
    """Of an example in a layer: its gradient, whitening it, factorising it."""
    dim = entry.d1 * entry.d2
    width = reduced_width(codec, config, entry.d1, entry.d2)
    if whitening_flops and width is not None:
        both, pairs = entry.d1 + entry.d2, codec.pairs or 1
        short, long = sorted((entry.d1, entry.d2))
        search = 4.0 * width * length * both + width * (4.0 * short**2 + 3.0 * long**2)
        # Inner products of all vectors, the pairs among them, and for each pair four products with either side.
        fitting = 2.0 * both * (width + pairs) ** 2 + 8.0 * pairs * (width + pairs) * both
        return search + fitting
    return 2.0 * length * dim + whitening_flops + 2.0 * dim * codec.products

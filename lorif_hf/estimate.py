"""What an index would cost, before it is built and without loading a weight."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from .building.fitting import shape_of
from .codecs import Codec, codec_of
from .config import InfluenceConfig
from .coverage import Coverage
from .curvature import curvature_of
from .curvature.encoding import bytes_per_example, module_entry, reduced_width, stored_entries
from .errors import LorifError, ModelMismatchError
from .layers.selection import Selection
from .storage.layout import ModuleEntry


PRESETS: dict[str, Callable[[], InfluenceConfig]] = {
    "default": InfluenceConfig,
    "smallest": InfluenceConfig.smallest,
    "best": InfluenceConfig.best,
    "paper": InfluenceConfig.paper,
    "logra": InfluenceConfig.logra,
    "trak": InfluenceConfig.trak,
}


@dataclass(frozen=True)
class Estimate:
    """What one config would cost.

    Args:
        bytes_per_example (`int`): stored factors, all layers together.
        index_bytes (`int`): of N examples, with the curvature; without texts and tokenizer.
        fit_memory (`int`): bytes that fitting the curvature (or the whitening) needs at its peak.
        seconds (`float`): to build it, at the given speed: rough, within a factor of a few.
        coverage (`Coverage`): how much of the model the config tracks, taken as trained whole where nothing is frozen.
        problem (`str` or `None`): why this model cannot be indexed with this config.
    """

    bytes_per_example: int = 0
    index_bytes: int = 0
    fit_memory: int = 0
    seconds: float = 0.0
    coverage: Coverage = field(default_factory=Coverage)
    problem: str | None = None


def empty_model(name: str, token: str | bool | None = None) -> nn.Module:
    """The model of a Hub id or folder on the meta device: its config is read, its weights are not.

    Raises:
        [`~lorif_hf.errors.ModelMismatchError`]: it has no config, or one that names no class that transformers has.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name, token=token)
    except (ValueError, OSError) as error:
        raise ModelMismatchError(f"No model config is found at {name} ({error}).") from error
    named = (getattr(transformers, name, None) for name in config.architectures or ["AutoModelForCausalLM"])
    model_class = next((known for known in named if known is not None), None)
    if model_class is None:
        raise ModelMismatchError(
            f"transformers has no {', '.join(config.architectures)}, which the config of {name} names: its layers "
            "cannot be laid out without its own code."
        )
    build = getattr(model_class, "from_config", None) or model_class._from_config
    with torch.device("meta"):
        model: nn.Module = build(config)
    return model


def estimates(
    model: nn.Module, num_examples: int, length: int, configs: Mapping[str, InfluenceConfig], flops_per_second: float
) -> dict[str, Estimate]:
    """Estimate each config for a model.

    Args:
        model (`nn.Module`): may be on the meta device.
        num_examples (`int`): N.
        length (`int`): tokens per example, T.
        configs (`Mapping[str, InfluenceConfig]`): by the name to show.
        flops_per_second (`float`): what the machine does in float32 matrix products.
    """
    by_name = {}
    for name, config in configs.items():
        try:
            by_name[name] = _estimate(model, num_examples, length, config, flops_per_second)
        except LorifError as error:
            by_name[name] = Estimate(problem=str(error))
    return by_name


def measured_speed(size: int = 1024) -> float:
    """Floating-point operations per second of a float32 matrix product on this machine (a GPU where there is one)."""
    matrix = torch.randn(size, size, device="cuda" if torch.cuda.is_available() else "cpu")
    times = []
    for _ in range(6):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[1:])


def _estimate(model: nn.Module, count: int, length: int, config: InfluenceConfig, speed: float) -> Estimate:
    selection = Selection(model, config.target_modules, config.exclude_modules)
    entries = [module_entry(tracked, config) for tracked in selection.modules]
    stored = stored_entries(config, entries)
    codec, curvature = codec_of(config), curvature_of(config)
    first_pass = curvature.first_pass
    first = [first_pass.cost(entry) for entry in entries] if first_pass else []
    fits = [curvature.cost(shape_of(entry, count, codec), None) for entry in stored]
    per_example = bytes_per_example(config, entries)
    size = count * per_example + sum(cost.stored for cost in (*first, *fits))
    memory = max([sum(cost.memory for cost in first), *(cost.memory for cost in fits)])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sampled = min(first_pass.samples, count) if first_pass else 0
    pass_flops = 4.0 * parameters * length  # forward, and backward to the activations alone
    whitening = [cost.flops for cost in first] or [0.0] * len(entries)
    encoding = sum(map(partial(_encoding_flops, length, config, codec), entries, whitening))
    flops = (count + sampled) * pass_flops + count * encoding + sum(cost.flops for cost in fits)
    return Estimate(per_example, size, memory, flops / speed, selection.coverage())


def _encoding_flops(
    length: int, config: InfluenceConfig, codec: Codec, entry: ModuleEntry, whitening_flops: float
) -> float:
    """Of an example in a layer: projecting its tokens, its gradient, whitening it, factorising it."""
    dim = entry.d1 * entry.d2
    sides = (entry.in_features, entry.d1), (entry.out_features, entry.d2)
    flops = 2.0 * length * sum(features * d for features, d in sides if features != d)
    width = reduced_width(codec, config, entry.d1, entry.d2)
    if whitening_flops and width is not None:
        both, pairs = entry.d1 + entry.d2, codec.pairs or 1
        short, long = sorted((entry.d1, entry.d2))
        search = 4.0 * width * length * both + 2.0 * width * (2 * short**2 + long**2)
        # Inner products of all vectors, the pairs among them, and for each pair four products with either side.
        fitting = 2.0 * both * (width + pairs) ** 2 + 8.0 * pairs * (width + pairs) * both
        return flops + search + fitting
    return flops + 2.0 * length * dim + whitening_flops + 2.0 * dim * codec.products

"""What an index would cost: against indices that were built."""

import pytest
import torch
from tiny import make_gpt2, make_rows, plain_config
from transformers import GPT2Config, GPT2LMHeadModel

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.curvature.encoding import bytes_per_example
from lorif_hf.errors import ModelMismatchError
from lorif_hf.estimate import PRESETS, empty_model, estimates, measured_speed
from lorif_hf.storage.files import parse_header
from lorif_hf.storage.layout import CURVATURE


CONFIGS = {
    "factors": InfluenceConfig.paper(projection_factor=2, factor_rank=2),
    "packed": plain_config(projection_factor=1, factor_rank=3, bits=1, whitening="kronecker", curvature="kronecker"),
    "both": plain_config(projection_factor=2, factor_rank=3, bits=4, whitening="kronecker", curvature="low-rank"),
    "logra": InfluenceConfig.logra(),
    "trak": InfluenceConfig.trak(projection_dim=16),
}


def tensor_bytes(path):
    content = path.read_bytes()
    return sum(span.end - span.begin for span in parse_header(path.name, len(content), content).values())


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_are_those_of_the_built_index(tmp_path, name):
    config, model, count = CONFIGS[name], make_gpt2(), 9
    index = InfluenceIndex.build(model, make_rows(count), tmp_path / "index", config=config)
    found = estimates(model, count, 16, {name: config}, 1e9)[name]
    stored = sum(tensor_bytes(tmp_path / "index" / shard.file) for shard in index.manifest.shards)
    assert found.bytes_per_example * count == stored == bytes_per_example(config, index.manifest.modules) * count
    # The dual curvature drops directions that are rounding noise, so that it may be smaller than announced.
    fitted, announced = tensor_bytes(tmp_path / "index" / CURVATURE), found.index_bytes - stored
    small = 4 * 64 + 16  # eigenvalues, damping and trace of a module
    assert 0.8 * announced <= fitted <= announced + small * len(index.manifest.modules)


def test_nothing_is_loaded_and_times_grow_with_the_work():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    configs = {name: make() for name, make in PRESETS.items()}
    few, many = (estimates(model, count, 128, configs, 1e12) for count in (1_000, 10_000))
    for name in configs:
        assert few[name].problem is None
        assert many[name].seconds > 5 * few[name].seconds > 0
        assert many[name].index_bytes > few[name].index_bytes
    assert few["paper"].bytes_per_example == 73_728  # 48 layers, (I + O) / 4 * 2 bytes


def test_a_config_that_the_model_cannot_have_is_said_beside_the_others():
    found = estimates(make_gpt2(), 10, 16, {"a": InfluenceConfig.paper(factor_rank=10), "b": CONFIGS["factors"]}, 1e9)
    assert "factor_rank=10 is above the limit of module" in found["a"].problem
    assert found["b"].problem is None


def test_a_folder_with_a_config_is_enough(tmp_path):
    config = make_gpt2().config
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    model = empty_model(str(tmp_path))
    assert isinstance(model, GPT2LMHeadModel) and all(one.is_meta for one in model.parameters())
    config.architectures = ["NoSuchModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelMismatchError) as caught:
        empty_model(str(tmp_path))
    assert str(caught.value) == (
        f"transformers has no NoSuchModel, which the config of {tmp_path} names: its layers cannot be laid out "
        "without its own code."
    )


def test_the_measured_speed_is_a_speed():
    assert 1e6 < measured_speed(64) < 1e18

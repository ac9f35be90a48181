"""LoRA on stacked experts (`target_parameters`): what is recorded of A and B is autograd's gradient of each row."""

import pytest
import torch
from mixtures import autograd, batch_of, errors_of, mixture, recorded, tracked_of
from peft import LoraConfig, get_peft_model

from lorif_hf import InfluenceConfig, InfluenceIndex
from lorif_hf.layers.selection import Selection


STACKS = ["experts.gate_up_proj", "experts.down_proj"]


def adapted(name, implementation="eager", parameters=STACKS, **options):
    config = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"], "init_lora_weights": False}
    torch.manual_seed(1)
    model = get_peft_model(
        mixture(name, implementation), LoraConfig(**{**config, "target_parameters": parameters, **options})
    )
    return model.eval()


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "deepseek-v3", "qwen3-moe"])
def test_equal_to_autograd_row_by_row(name, implementation):
    model, batch = adapted(name, implementation), batch_of()
    tracked = tracked_of(model)
    assert sum(".experts." in t.name for t in tracked) == (4 if name == "deepseek-v3" else 8)
    assert Selection(model, "all-linear").coverage().share == 1.0
    errors = errors_of(recorded(model, tracked, batch).gradients, autograd(model, tracked, batch))
    assert max(errors.values()) < 1e-5, errors
    assert model.config._experts_implementation == implementation


@pytest.mark.parametrize(
    "options", [{"use_rslora": True}, {"parameters": STACKS[1:]}, {"target_modules": []}], ids=str
)
def test_with_other_settings(options):
    model, batch = adapted("mixtral", **options), batch_of()
    tracked = tracked_of(model)
    errors = errors_of(recorded(model, tracked, batch).gradients, autograd(model, tracked, batch))
    assert max(errors.values()) < 1e-5, errors


def test_two_active_adapters():
    model, batch = adapted("gpt-oss"), batch_of()
    other = {"r": 2, "target_modules": ["q_proj"], "target_parameters": STACKS, "init_lora_weights": False}
    model.add_adapter("second", LoraConfig(**other))
    model.base_model.set_adapter(["default", "second"])
    tracked = tracked_of(model)
    assert {t.name.rpartition(".")[2] for t in tracked} == {"default", "second"}
    errors = errors_of(recorded(model, tracked, batch).gradients, autograd(model, tracked, batch))
    assert max(errors.values()) < 1e-5, errors


def test_an_index_of_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 40, (n,), generator=generator).tolist()} for n in (6, 4, 8, 5)]
    for config in (InfluenceConfig(), InfluenceConfig.grad_dot(projection_factor=1, dtype="float32")):
        model = adapted("mixtral", "grouped_mm")
        index = InfluenceIndex.build(model, rows, tmp_path / str(config.bits), config=config)
        assert index.coverage.share == 1.0
        assert index.scores(model, rows).argmax(dim=1).tolist() == list(range(len(rows)))

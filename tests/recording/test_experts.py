"""Fused experts: what is recorded of a batch is autograd's gradient of each row, and the model is as it was after."""

import threading

import pytest
import torch
from mixtures import MIXTURES, autograd, batch_of, errors_of, mixture, recorded, recorder_of, tracked_of
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers.experts import EXPERTS
from lorif_hf.recording.experts import NAME
from lorif_hf.tasks.own_loss import model_loss


def of_experts(tracked):
    return [t for t in tracked if isinstance(t.kind, EXPERTS)]


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", MIXTURES)
def test_equal_to_autograd_row_by_row(name, implementation):
    model, batch = mixture(name, implementation), batch_of()
    tracked = [t for t in tracked_of(model) if ".mamba." not in t.name]  # they are used without their modules
    assert of_experts(tracked)
    errors = errors_of(recorded(model, tracked, batch).gradients, autograd(model, tracked, batch))
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_same_outputs_and_the_own_implementation_is_back(implementation):
    model, batch = mixture("gpt-oss", implementation), batch_of()
    configs = [module.config for module in model.modules() if hasattr(module, "has_gate")]
    with torch.no_grad():
        expected = model(**batch).logits
    with recorder_of(model, tracked_of(model)), torch.no_grad():
        assert {m.config._experts_implementation for m in model.modules() if hasattr(m, "has_gate")} == {NAME}
        torch.testing.assert_close(model(**batch).logits, expected)
        assert model.config._experts_implementation == implementation
    assert [module.config for module in model.modules() if hasattr(module, "has_gate")] == configs
    assert all(module.config is model.config for module in model.modules() if hasattr(module, "has_gate"))
    assert model.config._experts_implementation == implementation and NAME in ALL_EXPERTS_FUNCTIONS


def test_it_is_back_after_an_error():
    model = mixture("mixtral", "grouped_mm")
    experts = model.model.layers[0].mlp.experts
    config = experts.config
    with pytest.raises(ZeroDivisionError), recorder_of(model, tracked_of(model)):
        assert experts.config is not config
        raise ZeroDivisionError
    assert experts.config is config and config._experts_implementation == "grouped_mm"


def test_a_model_of_the_same_config_is_left_alone():
    model = mixture("mixtral", "grouped_mm")
    other = type(model)(model.config)
    with recorder_of(model, tracked_of(model)):
        assert other.model.layers[0].mlp.experts.config._experts_implementation == "grouped_mm"


def test_one_of_two_products_alone():
    model, batch = mixture("mixtral"), batch_of()
    tracked = [t for t in tracked_of(model) if t.name.endswith("1.mlp.experts.down_proj")]
    errors = errors_of(recorded(model, tracked, batch).gradients, autograd(model, tracked, batch))
    assert max(errors.values()) < 1e-5


def test_experts_without_a_token_and_of_a_single_row():
    """Nine of ten experts are silent, and so are whole blocks of the gradients."""
    model, batch = mixture("mixtral", num_local_experts=20, num_experts_per_tok=1), batch_of((2, 1, 3))
    tracked = of_experts(tracked_of(model))
    expected = autograd(model, tracked, batch)
    found = recorded(model, tracked, batch).gradients
    errors = errors_of(found, expected)
    assert max(errors.values()) < 1e-5
    for t in tracked:
        blocks = found[t.name].unflatten(2, (20, -1)).abs().sum(dim=(1, 3)) > 0
        assert torch.equal(blocks, expected[t.name].unflatten(2, (20, -1)).abs().sum(dim=(1, 3)) > 0)
        used_by = blocks.sum(dim=0)
        assert bool((used_by == 0).any()) and bool((used_by == 1).any())


def test_rows_of_a_single_token():
    model, batch = mixture("olmoe"), batch_of((1, 1))
    batch["labels"] = torch.tensor([[3], [4]])
    tracked = of_experts(tracked_of(model))

    def last_logit(model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, -1, 5]

    with recorder_of(model, tracked, objective=last_logit) as recorder:
        found = recorder.record(batch).gradients
    for row in range(2):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        parts = torch.autograd.grad(last_logit(model, alone).sum(), [t.weight for t in tracked])
        for t, part in zip(tracked, parts, strict=True):
            torch.testing.assert_close(found[t.name][row], t.kind.as_matrix(part), rtol=1e-4, atol=1e-5)


def test_in_bfloat16():
    model, batch = mixture("qwen3-moe"), batch_of()
    tracked = of_experts(tracked_of(model))
    expected = autograd(model, tracked, batch)
    model.to(torch.bfloat16)
    errors = errors_of(recorded(model, tracked_of(model), batch).gradients, expected)
    assert max(errors.values()) < 0.2


def test_rows_that_go_alone():
    model, batch = mixture("mixtral"), batch_of((5,))
    tracked = tracked_of(model)
    found = recorded(model, tracked, batch, alone=True).gradients
    assert max(errors_of(found, autograd(model, tracked, batch)).values()) < 1e-5


def test_a_call_from_another_thread_is_served_and_noticed():
    model, batch = mixture("mixtral"), batch_of()
    expected, answers = model(**batch).logits.detach(), []
    with recorder_of(model, tracked_of(model)) as recorder:
        thread = threading.Thread(target=lambda: answers.append(model(**batch).logits.detach()))
        thread.start()
        thread.join()
        assert all(recorder._layers[t.name].used_elsewhere for t in of_experts(recorder.modules))
    torch.testing.assert_close(answers[0], expected)


def test_two_models_of_one_config_recorded_at_once():
    models = [mixture("mixtral", "grouped_mm")]
    models.append(type(models[0])(models[0].config).eval())
    batches = [batch_of(), batch_of((3, 6), seed=1)]
    tracked = [of_experts(tracked_of(model)) for model in models]
    expected = [autograd(*each) for each in zip(models, tracked, batches, strict=True)]
    found = [{}, {}]

    def record(number):
        for _ in range(5):
            found[number] = recorded(models[number], tracked[number], batches[number]).gradients

    threads = [threading.Thread(target=record, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(max(errors_of(*each).values()) < 1e-5 for each in zip(found, expected, strict=True))
    assert models[0].config._experts_implementation == "grouped_mm"


def test_experts_on_several_devices_are_refused():
    model = mixture("mixtral")
    model.model.layers[1].mlp.experts._is_expert_parallel = True
    with (
        pytest.raises(
            UnsupportedModuleError, match=r"'model\.layers\.1\.mlp\.experts\.gate_up_proj' .*enable_expert_p"
        ),
        recorder_of(model, tracked_of(model)),
    ):
        pass
    assert all(m.config is model.config for m in model.modules() if hasattr(m, "has_gate"))


def test_a_loss_of_the_router_is_recorded_where_rows_go_alone():
    model, batch = mixture("mixtral", output_router_logits=True, router_aux_loss_coef=0.5), batch_of((6,))
    tracked = tracked_of(model)
    found = recorded(model, tracked, batch, objective=model_loss(model)).gradients
    expected = autograd(model, tracked, batch)
    without = autograd(mixture("mixtral"), tracked_of(mixture("mixtral")), batch)
    assert max(errors_of(found, expected).values()) < 1e-5
    gate = "model.layers.0.mlp.gate"
    assert float((expected[gate] - without[gate]).norm()) > 1e-3


@pytest.mark.parametrize("tokens, chosen", [(6, 2), (6, 1), (1, 4), (0, 2)])
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "nemotron-h"])
def test_the_implementation_equals_that_of_transformers(name, tokens, chosen):
    module = next(part for part in mixture(name).modules() if hasattr(part, "has_gate")).double()
    hidden, weights = torch.randn(tokens, 16).double().requires_grad_(), torch.rand(tokens, chosen).double()
    experts = torch.rand(tokens, 4).topk(chosen, dim=1).indices
    found = ALL_EXPERTS_FUNCTIONS[NAME](module, hidden, experts.int(), weights)
    expected = ALL_EXPERTS_FUNCTIONS["batched_mm"](module, hidden, experts, weights)
    torch.testing.assert_close(found, expected)
    parts = [torch.autograd.grad(output.sin().sum(), [hidden])[0] for output in (found, expected)]
    torch.testing.assert_close(*parts)

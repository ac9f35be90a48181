"""An example's gradient belongs to the example: not to its batch, its padding or its neighbours."""

import pytest
import torch
from torch import nn

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.collation import PaddingCollator
from lorif_hf.tasks.objectives import LossObjective


CASES = [("gpt2", "right"), ("llama", "right"), ("llama", "left"), ("bert-classifier", "right")]


def _rows(batch, numbers, width=None):
    return {k: v[numbers] if v.dim() == 1 else v[numbers][:, :width] for k, v in batch.items()}


def _labels(kind, count):
    return [i % 3 for i in range(count)] if kind.endswith("classifier") else None


@pytest.mark.parametrize("lora", [None, {}])
@pytest.mark.parametrize(("kind", "side"), CASES)
def test_alone_or_in_a_batch(build, token_batch, record, assert_same_gradients, kind, side, lora):
    model, lengths = build(kind, lora=lora), [5, 9, 3, 9]
    batch = token_batch(lengths, side=side, labels=_labels(kind, 4))
    together = record(model, batch)
    for i, length in enumerate(lengths):
        single = _rows(batch, [i])
        if side == "right":
            single = _rows(single, [0], length)
        else:
            single = {k: v if v.dim() == 1 else v[:, 9 - length :] for k, v in single.items()}
        alone = record(model, single)
        found = {name: gradient[i : i + 1] for name, gradient in together.gradients.items()}
        assert_same_gradients(found, alone.gradients)
        torch.testing.assert_close(together.losses[i : i + 1], alone.losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("kind", "side"), CASES)
def test_order_and_neighbours(build, token_batch, record, assert_same_gradients, kind, side):
    model = build(kind)
    batch = token_batch([5, 9, 3], side=side, labels=_labels(kind, 3))
    other = token_batch([9, 4, 9], side=side, labels=_labels(kind, 3), seed=7)
    first = record(model, batch).gradients
    turned = record(model, _rows(batch, [2, 1, 0])).gradients
    assert_same_gradients({name: g.flip(0) for name, g in turned.items()}, first)
    mixed = record(model, {k: torch.cat([batch[k][:2], other[k][:1]]) for k in batch}).gradients
    assert_same_gradients({k: g[:2] for k, g in mixed.items()}, {k: g[:2] for k, g in first.items()})


def test_the_content_of_padding_does_not_matter(build, token_batch, record, assert_same_gradients):
    model, batch = build("llama"), token_batch([5, 9, 3])
    noisy = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 17)}
    assert_same_gradients(record(model, noisy).gradients, record(model, batch).gradients)


def test_a_module_that_pools_its_tokens_first(build, token_batch, record, reference, assert_same_gradients):
    """BERT's pooler sees one vector per example, its classifier is left out, and both widths meet: B = T."""
    model, batch = build("bert-classifier"), token_batch([3, 3, 2], labels=[0, 2, 1])
    recording = record(model, batch)
    assert "bert.pooler.dense" in recording.gradients and "classifier" not in recording.gradients
    assert_same_gradients(recording.gradients, reference(model, batch))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_first_token_after_left_padding_is_not_predicted_from_the_padding(
    build, token_batch, record, assert_same_gradients, kind
):
    """Labels as transformers' collators make them: every token has one, the first of a row too."""
    model, batch = build(kind), token_batch([6, 4], side="left")
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    alone = record(model, {key: value[1:, 2:] for key, value in batch.items()})
    together = record(model, batch)
    assert alone.targets.tolist() == [3] and together.targets.tolist() == [5, 3]
    torch.testing.assert_close(together.losses[1:], alone.losses, rtol=1e-5, atol=0)
    assert_same_gradients({name: g[1:] for name, g in together.gradients.items()}, alone.gradients)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_row_of_padding_only_gives_zero(build, token_batch, record, assert_same_gradients, kind, side):
    model = build(kind)
    batch, alone = token_batch([6, 0, 4], side=side), token_batch([6, 0, 4], side=side)
    recording = record(model, batch)
    assert recording.targets.tolist() == [5, 0, 3] and recording.losses[1] == 0
    for gradient in recording.gradients.values():
        assert not gradient[1].any()
    without = record(model, _rows(alone, [0, 2])).gradients
    assert_same_gradients({name: g[[0, 2]] for name, g in recording.gradients.items()}, without)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("lengths", [[6, 1], [1, 1], [1]], ids=str)
def test_a_row_of_one_token_gives_zero_to_a_causal_model(build, token_batch, record, kind, lengths):
    model, batch = build(kind), token_batch(lengths)
    recording = record(model, batch)
    for i, length in enumerate(lengths):
        assert recording.targets[i] == length - 1
        assert (recording.losses[i] == 0) == (length == 1)
        for gradient in recording.gradients.values():
            assert bool(gradient[i].any()) == (length > 1)


def test_labels_of_minus_100_take_no_part(build, token_batch, record, reference, assert_same_gradients):
    model, batch = build("llama"), token_batch([6, 6])
    batch["labels"][0, :4] = -100
    recording = record(model, batch)
    assert recording.targets.tolist() == [2, 5]
    assert_same_gradients(recording.gradients, reference(model, batch))


def test_a_sum_over_tokens_not_a_mean(build, token_batch, record):
    """The gradient of all labels is the sum of the gradients of each label alone."""
    model, batch = build("llama"), token_batch([4])
    parts = []
    for position in (1, 2, 3):
        labels = torch.full_like(batch["labels"], -100)
        labels[0, position] = batch["labels"][0, position]
        parts.append(record(model, {**batch, "labels": labels}).gradients)
    for name, gradient in record(model, batch).gradients.items():
        torch.testing.assert_close(gradient, sum(part[name] for part in parts), rtol=1e-4, atol=1e-4)


def test_one_recorder_for_many_batches(build, token_batch, draw, record, assert_same_gradients):
    model = build("llama")
    batches = [token_batch([5, 3], seed=1), token_batch([4], seed=2), token_batch([5, 3], seed=1)]
    modules = tracked_modules(model)
    recorder = GradientRecorder(model, modules, draw(modules, 2), LossObjective(task_of(model)))
    for _ in range(2):  # a recorder may be entered again
        with recorder:
            for batch in batches:
                assert_same_gradients(
                    recorder.record(batch).gradients, record(model, batch, factor=2).gradients, tolerance=1e-6
                )


def test_batches_of_the_padding_collator(build, record, reference, assert_same_gradients):
    model, collate = build("llama"), PaddingCollator(0, make_labels=True)
    features = [{"input_ids": [5, 6, 7, 8, 9]}, {"input_ids": [9, 10, 11]}]
    together = record(model, collate(features)).gradients
    for i, feature in enumerate(features):
        expected = reference(model, collate([feature]))
        assert_same_gradients({name: g[i : i + 1] for name, g in together.items()}, expected)


class Experts(nn.Module):
    """Each token goes to one of two experts, which see the tokens of all examples in one list."""

    def __init__(self, routes):
        super().__init__()
        self.enter, self.experts = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.routes = routes

    def forward(self, x):
        hidden = self.enter(x)
        out = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            out[self.routes == number] = expert(hidden[self.routes == number])
        return out


@pytest.mark.parametrize(
    "routes", [[[0, 0, 0], [1, 1, 0]], [[0, 0, 1], [1, 1, 1]]], ids=["four-and-two", "two-and-four"]
)
def test_experts_that_see_a_subset_of_the_tokens_are_an_error(record, routes):
    model, batch = Experts(torch.tensor(routes)), {"input_ids": torch.randn(2, 3)}

    def loss(model, batch):
        return model(batch["input_ids"][..., None].expand(-1, -1, 4)).pow(2).sum((1, 2))

    with pytest.raises(UnsupportedModuleError, match=r"'experts\.\d' saw 4 rows in a batch of 2 .*exclude_modules"):
        record(model, batch, loss)

"""Documents that share a sequence are recorded as each alone: gradients, moments, and what is cut of them."""

import pytest
import torch
from torch import nn

from lorif_hf.algebra.matrices import dense
from lorif_hf.algebra.rangefinder import RangeFinder
from lorif_hf.algebra.token_factors import TokenFactors
from lorif_hf.algebra.whitening import SecondMoments
from lorif_hf.errors import NonFiniteGradientError, UnsupportedModuleError
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective
from lorif_hf.tasks.segments import SEGMENTS, Segments


LENGTHS = [3, 11, 2, 7, 1, 5]


def batches(lengths=LENGTHS, seed=0):
    """Two sequences of three documents each, and every document alone."""
    generator = torch.Generator().manual_seed(seed)
    documents = [torch.randint(1, 300, (length,), generator=generator) for length in lengths]
    width = max(sum(lengths[:3]), sum(lengths[3:]))
    packed = {name: torch.zeros(2, width, dtype=torch.long) for name in ("input_ids", "position_ids")}
    packed["labels"] = torch.full((2, width), -100)
    places, singles = [], []
    for number, ids in enumerate(documents):
        sequence, start = divmod(number, 3)[0], sum(lengths[number // 3 * 3 : number])
        part = slice(start, start + len(ids))
        packed["input_ids"][sequence, part], packed["labels"][sequence, part] = ids, ids
        packed["position_ids"][sequence, part] = torch.arange(len(ids))
        packed["labels"][sequence, start] = -100
        places.append((sequence, start, start + len(ids)))
        single = {"input_ids": ids.unsqueeze(0), "labels": ids.unsqueeze(0)}
        singles.append(single if len(ids) > 1 else None)
    return {**packed, SEGMENTS: Segments((2, width), places)}, singles


def recorder_of(model, draw, statistics=None, reductions=None):
    modules = tracked_modules(model)
    return GradientRecorder(model, modules, draw(modules, 1), LossObjective(task_of(model)), statistics, reductions)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_each_document_is_as_alone(build, draw, kind):
    model = build(kind).eval()
    packed, singles = batches()
    with recorder_of(model, draw) as recorder:
        together = recorder.record(packed)
        for number, single in enumerate(singles):
            if single is None:
                assert not any(gradient[number].any() for gradient in together.gradients.values())
                continue
            alone = recorder.record(single)
            assert together.losses[number] == pytest.approx(float(alone.losses[0]), rel=1e-5)
            assert int(together.targets[number]) == int(alone.targets[0])
            for name, gradient in alone.gradients.items():
                torch.testing.assert_close(together.gradients[name][number], gradient[0], rtol=1e-4, atol=1e-4)


def test_moments_and_directions_are_as_alone(build, draw):
    model = build("llama").eval()
    # None of two tokens: the query of the only one with a target is reached by rounding alone, or by nothing.
    packed, singles = batches([3, 11, 4, 7, 1, 5])
    found = []
    for parts in ([packed], [single for single in singles if single is not None]):
        shapes = {t.name: t.shape.features for t in tracked_modules(model)}
        moments = {name: SecondMoments.zeros(*shape) for name, shape in shapes.items()}
        finders = {name: RangeFinder(torch.eye(d1), torch.eye(d2), 4) for name, (d1, d2) in shapes.items()}
        with recorder_of(model, draw, moments, finders) as recorder:
            records = [recorder.record(part) for part in parts]
        low = {name: torch.cat([dense(record.gradients[name]) for record in records]) for name in shapes}
        found.append((moments, low))
    (moments, low), (expected, lows) = found
    kept = [number for number, single in enumerate(singles) if single is not None]
    for name, of_all in expected.items():
        assert moments[name].tokens == of_all.tokens
        torch.testing.assert_close(moments[name].inputs, of_all.inputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments[name].outputs, of_all.outputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(low[name][kept], lows[name], rtol=1e-3, atol=1e-3)


def test_a_document_without_a_finite_gradient_is_named(build, draw):
    model = build("llama").eval()
    packed, _ = batches()
    sequence, start, _ = packed[SEGMENTS].places[3]
    token = int(packed["input_ids"][sequence, start])
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("inf")
    rows = [10, 11, 12, 13, 14, 15]
    holders = {
        row
        for row, (s, a, b) in zip(rows, packed[SEGMENTS].places, strict=True)
        if (packed["input_ids"][s, a:b] == token).any()
    }
    with recorder_of(model, draw) as recorder, pytest.raises(NonFiniteGradientError) as error:
        recorder.record(packed, rows)
    assert 13 in holders and set(error.value.rows) >= holders - {14}


def test_a_layer_of_other_tokens_is_refused(build, draw):
    class Pooled(nn.Module):
        """Sees the mean of each sequence alone."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.extra = inner, nn.Linear(16, 16)

        def forward(self, x):
            return self.inner(x) + self.extra(x.mean(dim=1, keepdim=True))

    model = build("llama").eval()
    model.model.layers[1].mlp = Pooled(model.model.layers[1].mlp)
    packed, _ = batches()
    with recorder_of(model, draw) as recorder:
        with pytest.raises(
            UnsupportedModuleError, match=r"'model.layers.1.mlp.extra' saw 2 x 1 tokens of a batch of 2"
        ):
            recorder.record(packed)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_documents_made_of_their_tokens_are_those_that_are_formed(build, draw, kind):
    """Of few tokens they are products of various widths, of many they are formed."""
    model = build(kind).eval()
    packed, _ = batches()
    factors = {tracked.name: TokenFactors(None, None) for tracked in tracked_modules(model)}
    with recorder_of(model, draw, reductions=factors) as recorder:
        made = recorder.record(packed).gradients
    with recorder_of(model, draw) as recorder:
        for name, expected in recorder.record(packed).gradients.items():
            torch.testing.assert_close(dense(made[name]), expected, rtol=1e-4, atol=1e-4)

"""Examples that share a sequence: what is theirs, against a loop over each."""

import pytest
import torch

from lorif_hf.tasks.segments import SEGMENTS, Segments, cut, in_place, sums_by_example, without_segments


def random_segments(seed):
    """Documents of 1 to 12 tokens in two sequences, some of them left out, with padding behind."""
    generator = torch.Generator().manual_seed(seed)
    places, length = [], 40
    for sequence in (0, 1):
        start = int(torch.randint(3, (1,), generator=generator))
        while start < length - 12:
            stop = start + int(torch.randint(1, 13, (1,), generator=generator))
            if torch.rand(1, generator=generator) < 0.8:
                places.append((sequence, start, stop))
            start = stop
    order = torch.randperm(len(places), generator=generator).tolist()
    return Segments((2, length), [places[i] for i in order])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("copies", [1, 3])
def test_the_tokens_of_each_example_are_cut_out(seed, copies):
    segments = random_segments(seed)
    values = torch.randn(2, 40 * copies, 5, dtype=torch.float64)
    cuts = segments.cuts(torch.device("cpu"))
    assert sorted(number for numbers, _ in cuts for number in numbers) == list(range(len(segments)))
    for numbers, index in cuts:
        parts = cut(values, index, copies)
        lengths = [segments.lengths[number] for number in numbers]
        assert parts.shape == (len(numbers), max(lengths) * copies, 5) and max(lengths) <= 2 * min(lengths)
        for number, part in zip(numbers, parts, strict=True):
            sequence, start, stop = segments.places[number]
            own = values[sequence, start * copies : stop * copies]
            assert torch.equal(part[: len(own)], own) and not part[len(own) :].any()
    order = in_place(cuts)
    flat = [number for numbers, _ in cuts for number in numbers]
    assert [flat[i] for i in order] == list(range(len(segments)))


@pytest.mark.parametrize("seed", range(8))
def test_a_sum_is_over_the_predictions_of_an_examples_tokens(seed):
    """That of its first token stands at the last token of the example before it; a sequence's first has none."""
    segments, values = random_segments(seed), torch.randn(2, 40, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([values[s, max(0, a - 1) : max(0, b - 1)].sum() for s, a, b in segments.places])
    found = sums_by_example(values, {SEGMENTS: segments})
    torch.testing.assert_close(found, expected)
    weights = torch.randn(len(segments), dtype=torch.float64)
    gradients = [torch.autograd.grad(sums @ weights, values)[0] for sums in (found, expected)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(sums_by_example(values, {}), values.sum(dim=1))


def test_other_labels_do_not_count():
    segments = Segments((1, 6), [(0, 1, 3), (0, 4, 5)])
    assert segments.masked(torch.arange(6).unsqueeze(0)).tolist() == [[-100, 1, 2, -100, 4, -100]]
    assert segments.lengths.tolist() == [2, 1] and len(segments) == 2
    assert without_segments({"a": 1, SEGMENTS: segments}) == {"a": 1}


def test_a_single_token_at_the_beginning_has_no_prediction():
    assert Segments((1, 3), [(0, 0, 1)]).sums(torch.ones(1, 3)).tolist() == [0]

"""What is measured of a query, against autograd of what its name says."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from recordings import build, train_tokenizer
from truth import GRADIENTS

from lorif_hf import InfluenceIndex
from lorif_hf.errors import QueryError
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import Custom, task_of
from lorif_hf.tasks.measures import check_measure, objective_of, usual_measure
from lorif_hf.tasks.objectives import LikelihoodObjective, LossObjective, RewardObjective
from lorif_hf.tasks.query_forms import Query


TOKENIZER = train_tokenizer()
PROMPT, CHOSEN, REJECTED = "The capital of France is", " Paris", " Rome and Italy"
ROW = {"input_ids": [5, 6]}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    model = build("gpt2").eval()
    ids = [TOKENIZER(text)["input_ids"] for text in ("The capital of Italy", "Which training examples", "Paris")]
    rows = Dataset.from_dict({"input_ids": [*ids, [7, 8, 9]]})
    folder = tmp_path_factory.mktemp("measured") / "index"
    return model, rows, InfluenceIndex.build(model, rows, folder, config=GRADIENTS, processing_class=TOKENIZER)


def log_probs(model, text, start):
    """(T,) log p of each token from place `start` on, and the logits they are made of."""
    ids = torch.tensor([TOKENIZER(text)["input_ids"]])
    logits = model(ids).logits[0, start - 1 : -1]
    return F.log_softmax(logits, dim=-1).gather(1, ids[0, start:, None])[:, 0], logits, ids[0, start:]


def expected_scores(index, model, rows, value):
    """<d value, -d loss> in the tracked layers: what a step on the row adds to the value. (N,) and the value."""
    names = dict(model.named_modules())
    weights = [names[entry.name].weight.requires_grad_(True) for entry in index.manifest.modules]

    def gradient(scalar):
        return torch.cat([part.flatten() for part in torch.autograd.grad(scalar, weights)]).double()

    asked = value()
    up = gradient(asked)
    losses = [model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["input_ids"]])).loss for row in rows]
    counts = [len(row["input_ids"]) - 1 for row in rows]
    scores = [-(up @ gradient(loss * count)) for loss, count in zip(losses, counts, strict=True)]
    return torch.stack(scores).float(), float(asked.detach())


START = len(TOKENIZER(PROMPT)["input_ids"])


def log_prob(model, completion=CHOSEN):
    return log_probs(model, PROMPT + completion, START)[0].sum()


def margin(model):
    likelihoods, *_ = log_probs(model, PROMPT + CHOSEN, START)
    return (likelihoods - torch.log(-torch.expm1(likelihoods.double()))).sum().float()


PAIR = {"prompt": PROMPT, "chosen": CHOSEN + "<eos>", "rejected": REJECTED + "<eos>"}


@pytest.mark.parametrize(
    "measure, query, value",
    [
        (None, (PROMPT, CHOSEN), log_prob),
        ("loss", (PROMPT, CHOSEN), log_prob),
        ("log_prob", (PROMPT, CHOSEN), log_prob),
        ("margin", (PROMPT, CHOSEN), margin),
        (None, PAIR, lambda model: log_prob(model, PAIR["chosen"]) - log_prob(model, PAIR["rejected"])),
        ("difference", PAIR, lambda model: log_prob(model, PAIR["chosen"]) - log_prob(model, PAIR["rejected"])),
    ],
    ids=["nothing said", "loss", "log_prob", "margin", "a pair", "difference"],
)
def test_a_proponent_raises_what_is_measured(indexed, measure, query, value):
    model, rows, index = indexed
    scores = index.scores(model, query, measure=measure)
    expected, asked = expected_scores(index, model, rows, lambda: value(model))
    torch.testing.assert_close(scores[0], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    result = index.attribute(model, query, measure=measure, top_k=1)
    assert result.losses == pytest.approx([-asked], rel=1e-4)
    assert result.measure == (measure or ("difference" if isinstance(query, dict) else "loss"))


def test_a_triple_of_strings_is_a_pair_where_it_is_said_to_be(indexed):
    model, _, index = indexed
    expected = index.scores(model, {"prompt": "The", "chosen": " capital", "rejected": " model"})
    assert torch.equal(index.scores(model, ("The", " capital", " model"), measure="difference"), expected)
    assert torch.equal(index.scores(model, [("The", " capital", " model")]), expected)
    assert index.scores(model, ("The capital", " capital of", " model which")).shape == (3, 4)


def test_a_pair_is_what_it_is_made_of_whatever_the_batch(indexed):
    model, _, index = indexed
    other = {"prompt": "The", "chosen": " capital of", "rejected": " model"}
    pairs = [PAIR, other, {"chosen": "a b", "rejected": "c d"}]
    alone = torch.cat([index.scores(model, pair) for pair in pairs])
    for batch_size in (1, 2, 3, 5, 8):
        together = index.scores(model, pairs, batch_size=batch_size)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
    mean = index.scores(model, pairs, reduce="mean", batch_size=2)
    torch.testing.assert_close(mean[0], alone.mean(dim=0), rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
    swapped = {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    torch.testing.assert_close(index.scores(model, swapped), -alone[:1], rtol=1e-4, atol=1e-4)


def test_a_completion_that_was_unwanted_is_asked_with_the_other_sign(indexed):
    model, _, index = indexed
    row = {"prompt_ids": [5, 6], "completion_ids": [7, 8]}
    wanted, unwanted = (index.scores(model, {**row, "label": label}) for label in (True, False))
    assert torch.equal(wanted, index.scores(model, row)) and torch.equal(unwanted, -wanted)
    both = index.scores(model, [{**row, "label": False}, {**row, "label": True}], per_token=True)
    torch.testing.assert_close(both.sum(dim=1), torch.cat([unwanted, wanted]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "query, options, message",
    [
        (
            PAIR,
            {"measure": "loss"},
            "Query 0 has two completions, of which measure='loss' is not known: ask",
        ),
        (PAIR, {"measure": "margin"}, "Query 0 has two completions, of which measure='margin' is not known"),
        ([PAIR, "a b c"], {}, "Query 1 is no pair of completions, which measure='difference' is of: pass {'prompt'"),
        ("a b", {"measure": "difference"}, "Query 0 is no pair of completions, which measure='difference' is of"),
        ("a b", {"measure": "reward"}, "measure='reward' is what a model of a single output gives, and a GPT2LMHead"),
        ([PAIR], {"per_token": True}, "Query 0 has two completions: leave out per_token= and token=, or ask about"),
        ("a b c", {"token": 9}, "Query 0 has "),
    ],
    ids=str,
)
def test_what_is_no_query_of_a_measure_is_named_before_the_model_runs(indexed, monkeypatch, query, options, message):
    model, _, index = indexed
    monkeypatch.setattr(GradientRecorder, "record", lambda *_: pytest.fail("it ran"))
    with pytest.raises(QueryError) as caught:
        index.scores(model, query, **options)
    assert str(caught.value).startswith(message)


def test_a_token_that_is_none_says_which_there_are(indexed):
    model, _, index = indexed
    with pytest.raises(QueryError) as caught:
        index.scores(model, [{"input_ids": [1, 2, 3]}], token=-3)
    assert str(caught.value) == "Query 0 has 2 measured token(s), token=-3 is none of them: expected -2 to 1."


@pytest.mark.parametrize(
    "kind, objective, measure, expected",
    [
        ("llama", None, "loss", LossObjective),
        ("llama", None, "log_prob", LikelihoodObjective),
        ("llama", "model", "log_prob", LossObjective),
        ("llama", "model", "difference", LossObjective),
        ("bert-classifier", None, "log_prob", LikelihoodObjective),
    ],
)
def test_which_objective_a_measure_is(kind, objective, measure, expected):
    model = build(kind)
    assert type(objective_of(measure, task_of(model, objective), model)) is expected


def test_a_model_of_one_output_is_measured_by_its_reward():
    model = build("bert-classifier", num_labels=1)
    task = task_of(model)
    assert type(objective_of("difference", task, model)) is RewardObjective
    plain, labelled = Query((ROW,)), Query(({**ROW, "labels": 0.5},))
    assert usual_measure([plain], model, task, "trainer", "loss") == "reward"
    assert usual_measure([labelled], model, task, "trainer", "loss") == "loss"
    assert usual_measure([plain], model, task, "sequence-classification", "margin") == "margin"
    assert usual_measure([Query((ROW,), -1.0)], build("llama"), task, "trainer", "loss") == "log_prob"


def test_a_loss_of_ones_own_has_no_likelihoods(indexed):
    model, *_ = indexed
    own = Custom(lambda model, batch: model(batch["input_ids"]).logits.sum(dim=(1, 2)))
    with pytest.raises(QueryError, match="measure='log_prob' needs the classes that the model tells apart, and obje"):
        objective_of("log_prob", own, model)
    check_measure([Query((ROW,))], "loss")

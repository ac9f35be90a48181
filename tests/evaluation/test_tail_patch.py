"""The tail-patch score against a copy of the model that is trained by hand."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2, make_rows
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from lorif_hf.errors import EvaluationError, QueryError
from lorif_hf.evaluation import proponent_batches, tail_patch, tail_patch_of


ROWS = make_rows(20)
QUERIES = make_rows(3, seed=1)
INDICES = np.array([[0, 5], [7, 2], [11, 19]])


def patched(model, queries=QUERIES, indices=INDICES, rows=ROWS, learning_rate=0.1, **options):
    return tail_patch(model, queries, proponent_batches(model, rows, indices), learning_rate=learning_rate, **options)


def log_probability(model, ids):
    """Token by token."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        predicted = model(input_ids=ids).logits[0].log_softmax(dim=-1)
    return float(sum(predicted[i - 1, ids[0, i]].double() for i in range(1, ids.shape[1])))


def by_hand(model, query, rows, learning_rate, optimizer=torch.optim.SGD):
    """(before, after) of one query, on a copy of the model; each row goes through it alone."""
    model = copy.deepcopy(model).eval()
    before = log_probability(model, query)
    stepper = optimizer([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    for row in rows:
        ids = torch.tensor([ROWS[int(row)]["input_ids"]])
        logits = model(input_ids=ids).logits[0, :-1]
        (nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / len(rows)).backward()
    stepper.step()
    return before, log_probability(model, query)


def state(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: (p.grad, None if p.grad is None else p.grad.sum()) for name, p in model.named_parameters()}
    return tensors, grads, [module.training for module in model.modules()], torch.get_rng_state()


def assert_same(first, second):
    assert first[0].keys() == second[0].keys()
    for name, tensor in first[0].items():
        assert torch.equal(tensor.view(torch.uint8), second[0][name].view(torch.uint8)), name
    assert all(second[1][name][0] is grad and second[1][name][1] == total for name, (grad, total) in first[1].items())
    assert first[2] == second[2] and torch.equal(first[3], second[3])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_it_is_one_step_on_a_copy(optimizer):
    model = make_gpt2()
    rate = 0.1 if optimizer is torch.optim.SGD else 1e-3
    result = patched(model, learning_rate=rate, optimizer=optimizer)
    pairs = [by_hand(model, q["input_ids"], r, rate, optimizer) for q, r in zip(QUERIES, INDICES, strict=True)]
    before, after = np.array(pairs).T
    assert result.before == pytest.approx(before, abs=1e-4) and result.after == pytest.approx(after, abs=1e-4)
    assert result.per_query == pytest.approx(after - before, abs=1e-4)
    assert result.mean == pytest.approx((after - before).mean(), abs=1e-4) and abs(result.mean) > 1e-2


def test_training_on_the_query_itself_makes_it_more_likely():
    result = patched(make_gpt2(), queries=ROWS.select([4, 9]), indices=[[4], [9]], learning_rate=0.01)
    assert (result.per_query > 0.1).all() and result.interval[0] > 0


def test_a_small_step_changes_by_the_product_of_the_gradients():
    model, rate = make_gpt2().double(), 1e-5
    result = patched(model, learning_rate=rate)

    def gradient(ids):
        ids = torch.tensor([ids])
        loss = nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    for change, query, rows in zip(result.per_query, QUERIES, INDICES, strict=True):
        mean = sum(gradient(ROWS[int(row)]["input_ids"]) for row in rows) / len(rows)
        # The objective is taken in float32, whatever the model is in.
        assert change == pytest.approx(rate * float(gradient(query["input_ids"]) @ mean), rel=0.05, abs=2e-5)


def test_the_model_is_as_it_was_bit_for_bit():
    model = make_gpt2().train()
    model.transformer.h[1].eval()
    with torch.no_grad():
        model.lm_head.weight[3, 3] = -0.0  # a sum with what the step changed would lose the sign
    model.transformer.wpe.weight.requires_grad_(False)
    model.transformer.ln_f.weight.grad = torch.ones(12)
    expected = state(model)
    first = patched(model, optimizer=torch.optim.AdamW)
    assert_same(expected, state(model))
    with torch.no_grad():
        again = patched(model, optimizer=torch.optim.AdamW)  # also where the caller wants no gradients
    model.transformer.ln_f.weight.grad = None
    clean = patched(model, optimizer=torch.optim.AdamW)
    assert np.array_equal(first.per_query, again.per_query) and np.array_equal(first.per_query, clean.per_query)
    assert not first.before.tolist() == first.after.tolist()


def test_dropout_is_off():
    model = make_gpt2().train()
    assert patched(model).before.tolist() == patched(model.eval()).before.tolist()


class BreaksAfterTheStep(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        raise KeyboardInterrupt


def test_the_model_is_as_it_was_after_an_error():
    model = make_gpt2().train()
    expected = state(model)
    with pytest.raises(KeyboardInterrupt):
        patched(model, optimizer=BreaksAfterTheStep)
    assert_same(expected, state(model))
    with pytest.raises(EvaluationError, match=r"query 0 must be finite, found -\d.* and nan after the step: lower"):
        patched(model, learning_rate=1e38)
    assert_same(expected, state(model))


def test_only_what_requires_a_gradient_takes_the_step():
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(make_gpt2(), config).eval()
    seen = []

    def optimizer(parameters, lr):
        seen.append(sum(parameter.numel() for parameter in parameters))
        return torch.optim.SGD(parameters, lr=lr)

    result = patched(model, optimizer=optimizer)
    assert set(seen) == {sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)} and len(seen) == 3
    expected = by_hand(model, QUERIES[1]["input_ids"], INDICES[1], 0.1)
    assert (result.before[1], result.after[1]) == pytest.approx(expected, abs=1e-4)


def classifier():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=12,
        n_layer=1,
        n_head=2,
        num_labels=3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2ForSequenceClassification(config).eval()


def test_a_classifier_is_held_to_the_label_it_chose_before_the_step():
    model = classifier()
    query = {"input_ids": QUERIES[0]["input_ids"]}
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([query["input_ids"]])).logits[0]
    label = int(logits.argmax())
    rows = QUERIES.select([0]).add_column("label", [(label + 1) % 3])  # the same text under another label
    result = patched(model, [query], [[0]], rows, learning_rate=1.0)
    assert result.before[0] == pytest.approx(float(logits.log_softmax(-1)[label]), abs=1e-5)
    assert result.after[0] < np.log(1 / 3)  # the model would say something else now
    labelled = patched(model, [{**query, "labels": label}], [[0]], rows, learning_rate=1.0)
    assert labelled.per_query.tolist() == result.per_query.tolist()


def test_text_queries_own_objectives_and_collators_are_taken(tokenizer):
    model = make_gpt2()
    assert patched(model, [("1 2", " 3 4")], [[1]], processing_class=tokenizer).before[0] == pytest.approx(
        log_probability(model, [1, 2, 3, 4]) - log_probability(model, [1, 2]), abs=1e-4
    )
    doubled = patched(model, QUERIES, objective=lambda m, b: 2 * m(input_ids=b["input_ids"]).logits.mean(dim=(1, 2)))
    logits = model(input_ids=torch.tensor([QUERIES[0]["input_ids"]])).logits
    assert doubled.before[0] == pytest.approx(-2 * logits.mean().item(), abs=1e-5)
    collated = []
    batches = proponent_batches(
        model,
        ROWS,
        INDICES,
        data_collator=lambda rows: collated.append(rows) or {"input_ids": torch.ones(2, 3)},
    )
    assert next(batches)["input_ids"].shape == (2, 3)
    assert [row["example_id"] for row in collated[0]] == ["row-0", "row-5"] and len(collated) == 1


def test_batches_are_the_rows_of_the_training_set():
    (first, *others) = proponent_batches(make_gpt2(), ROWS, torch.tensor(INDICES))
    for ids, mask, row in zip(first["input_ids"], first["attention_mask"], INDICES[0], strict=True):
        assert ids[mask == 1].tolist() == ROWS[int(row)]["input_ids"]
    assert len(others) == 2 and (first["labels"][first["attention_mask"] == 0] == -100).all()


@pytest.mark.parametrize(
    "indices, message",
    [
        ([[0, 20]], "indices name row 20, the dataset has 20: pass the one indexed"),
        ([[-1, 2]], "indices name row -1"),
        ([[0.5]], "indices must be row numbers, found float64"),
        ([0, 1], r"indices must have 2 axes \(one query, one row\), found shape \(2,\)"),
    ],
)
def test_rows_that_are_none_are_refused(indices, message):
    with pytest.raises(EvaluationError, match=message):
        proponent_batches(make_gpt2(), ROWS, indices)


def test_what_cannot_be_measured_is_refused():
    model = make_gpt2()
    with pytest.raises(EvaluationError, match="Each query needs its batch: expected 3 of them, found 2"):
        patched(model, indices=INDICES[:2])
    with pytest.raises(EvaluationError, match="Each query needs its batch: expected 2 of them, found more"):
        patched(model, QUERIES.select([0, 1]))
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(EvaluationError, match="learning_rate must be above 0, found"):
            patched(model, learning_rate=rate)
    with pytest.raises(QueryError, match="Query 0 has no token to measure"):
        patched(model, [{"input_ids": [3]}], INDICES[:1])
    with pytest.raises(EvaluationError, match="No parameter of the model requires a gradient"):
        patched(model.requires_grad_(False))


def test_log_probabilities_that_were_measured_elsewhere():
    result = tail_patch_of([-3.0, -1.0], torch.tensor([-2.0, -1.5]), seed=1)
    assert result.per_query.tolist() == [1.0, -0.5] and result.mean == 0.25
    assert result.interval == (-0.5, 1.0) and np.isnan(tail_patch_of([-1.0], [-0.5]).interval).all()
    with pytest.raises(EvaluationError, match="after must have one value per query: expected 2, found 1"):
        tail_patch_of([-3.0, -1.0], [-2.0])
    with pytest.raises(EvaluationError, match="before must be finite, found nan at query 1"):
        tail_patch_of([-3.0, np.nan], [-2.0, -1.0])

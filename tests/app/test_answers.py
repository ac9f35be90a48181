"""What the model says, and that it is left as it was."""

import copy

import pytest
import torch
from app_rows import talker, words
from peft import LoraConfig, get_peft_model
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from lorif_hf.app.answers import Answerer
from lorif_hf.errors import QueryError


TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}41{% endif %}"


def greedy(model, ids, count):
    """The likeliest token each time, without `generate`."""
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def text(ids):
    return " ".join(map(str, ids))


def distilbert(kind, **options):
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=50, dim=8, n_layers=1, n_heads=2, hidden_dim=16, **options)
    return kind(config).eval()


def state(model):
    """Everything that asking could leave changed."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        model.config.to_dict(),
        model.generation_config.to_dict(),
        torch.get_rng_state().tolist(),
    )


def same(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]


def test_the_answer_is_the_likeliest_token_each_time():
    model = talker()
    said = Answerer(model, words()).answer("5 9 14", 4)
    assert "5 9 14" + said.text == text(greedy(model, [5, 9, 14], 4)) and not said.finished


def test_an_answer_ends_where_the_model_ends_it():
    model = talker()
    ids = greedy(model, [5, 9, 14], 4)
    end = next(place for place in range(4, 7) if ids[place] not in ids[3:place])
    model.generation_config.eos_token_id = [49, ids[end]]
    said = Answerer(model, words()).answer("5 9 14", 4)
    assert said.text == "".join(f" {token}" for token in ids[3:end]) and said.finished


def test_sampling_that_the_model_is_set_to_is_left_out():
    model = talker()
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=3, num_beams=2, num_return_sequences=2)
    said = Answerer(model, words()).answer("5 9 14", 4)
    assert "5 9 14" + said.text == text(greedy(model, [5, 9, 14], 4))


def test_the_model_is_left_as_it_was():
    model = talker().train()
    model.transformer.h[1].eval()
    model.lm_head.weight.requires_grad_(False)
    model.generation_config.update(do_sample=True, temperature=5.0)
    before = state(model)
    Answerer(model, words()).answer("5 9 14", 4)
    same(before, state(model))


def test_the_model_is_left_as_it_was_after_an_error(monkeypatch):
    model = talker().train()
    before = state(model)

    def broken(*arguments, **options):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(model, "generate", broken, raising=False)
    with pytest.raises(RuntimeError, match="out of luck"):
        Answerer(model, words()).answer("5 9 14", 4)
    monkeypatch.undo()
    same(before, state(model))


def test_an_answer_is_cut_to_the_room_that_the_prompt_leaves():
    model = talker()  # 16 positions
    said = Answerer(model, words()).answer(text(range(1, 15)), 10)
    assert len(said.text.split()) == 2


def test_a_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(QueryError, match="16 tokens and the model takes 16 in all.*shorten the prompt"):
        Answerer(talker(), words()).answer(text(range(1, 17)))


def test_a_model_that_says_nothing_is_told():
    model = talker()
    model.generation_config.eos_token_id = greedy(model, [5, 9, 14], 1)[-1]
    with pytest.raises(QueryError, match="says nothing to this prompt.*write the answer"):
        Answerer(model, words()).answer("5 9 14")


def test_a_chat_is_asked_by_the_template():
    model = talker()
    answerer = Answerer(model, words(TEMPLATE))
    assert answerer.chats
    said = answerer.answer("5 9", 3, chat=True)
    assert said.text.split() == text(greedy(model, [5, 9, 41], 3)[3:]).split()
    messages = answerer.query("5 9", said.text, chat=True)
    assert [message["role"] for message in messages] == ["user", "assistant"]


def test_an_encoder_decoder_is_asked_with_the_whole_prompt():
    torch.manual_seed(0)
    config = T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    said = Answerer(model, words()).answer("5 9 14", 3)
    ids = [0]
    for _ in range(3):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[5, 9, 14]]), decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    assert said.text == text(ids[1:])


def test_a_classifier_names_its_likeliest_class():
    model = distilbert(DistilBertForSequenceClassification, num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    answerer = Answerer(model, words())
    assert (answerer.kind, answerer.labels) == ("label", ["a", "b", "c"])
    before = copy.deepcopy(model.state_dict())
    said = answerer.answer("5 9 14")
    with torch.no_grad():
        shares = model(torch.tensor([[5, 9, 14]])).logits.softmax(-1)[0]
    assert said.text == "abc"[int(shares.argmax())] and said.probability == pytest.approx(float(shares.max()))
    assert answerer.query("5 9 14", said.text) == ("5 9 14", said.text)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_adapters_of_a_model_answer_with_it():
    base = talker()
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False)).eval()
    said = Answerer(model, words()).answer("5 9 14", 4)
    assert "5 9 14" + said.text == text(greedy(model, [5, 9, 14], 4))
    with model.disable_adapter():
        assert "5 9 14" + said.text != text(greedy(model, [5, 9, 14], 4))


@pytest.mark.parametrize(
    "model",
    [
        distilbert(DistilBertForMaskedLM),
        distilbert(DistilBertForSequenceClassification, num_labels=1),
        distilbert(DistilBertForSequenceClassification, num_labels=3, problem_type="multi_label_classification"),
    ],
    ids=["masked", "regression", "several labels"],
)
def test_others_give_no_answer_and_the_text_is_attributed_as_it_stands(model):
    answerer = Answerer(model, words())
    assert answerer.kind == "text" and answerer.answer("5 9 14") is None and answerer.query("5 9", None) == "5 9"

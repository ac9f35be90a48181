"""What a model can take, against the truth: the longest input at which its forward pass does not fail."""

import pytest
import torch
import transformers
from torch import nn

from lorif_hf.errors import QueryError
from lorif_hf.tasks.input_limits import InputLimits


POSITIONS = 18
SMALL = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "embed_dim", "embedding_size", "word_embed_proj_dim"], 16),
    **dict.fromkeys(["dim", "emb_dim", "input_embedding_size"], 16),
    **dict.fromkeys(["intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"], 24),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers", "n_layers"], 1),
    **dict.fromkeys(["num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"], 2),
    **dict.fromkeys(["decoder_attention_heads", "num_key_value_heads"], 2),
    **dict.fromkeys(["max_position_embeddings", "n_positions"], POSITIONS),
    "vocab_size": 60,
    "pad_token_id": 1,
    "d_kv": 8,
    "head_dim": 8,
    "rotary_dim": 4,
    "attention_window": [4],
}


def make(name):
    cls = getattr(transformers, name)
    defaults = cls.config_class()
    options = {key: value for key, value in SMALL.items() if getattr(defaults, key, -1) not in (None, -1)}
    config = cls.config_class(**options, bos_token_id=0, eos_token_id=2)
    config.is_decoder = name.endswith(("CausalLM", "LMHeadModel")) or getattr(config, "is_decoder", False)
    torch.manual_seed(0)
    return cls(config).eval()


def longest(model):
    """The longest input at which the model does not fail; 0: there is none up to twice its config's number."""
    for length in range(POSITIONS - 3, 2 * POSITIONS):
        try:
            with torch.no_grad():
                model(input_ids=torch.tensor([[5] * (length - 1) + [2]]))
        except (IndexError, RuntimeError):
            return length - 1
    return 0


LEARNED = ["GPT2LMHeadModel", "BertForSequenceClassification", "DistilBertForSequenceClassification"]
LEARNED += ["OPTForCausalLM", "BartForCausalLM", "BartForSequenceClassification", "BioGptForCausalLM"]
LEARNED += ["OpenAIGPTLMHeadModel", "ElectraForSequenceClassification", "AlbertForSequenceClassification"]
LEARNED += ["XLMForSequenceClassification", "DebertaForSequenceClassification", "GPTBigCodeForCausalLM"]
FROM_PADDING = ["RobertaForCausalLM", "RobertaForSequenceClassification", "XLMRobertaForSequenceClassification"]
FROM_PADDING += ["CamembertForSequenceClassification", "MPNetForSequenceClassification"]
COMPUTED = ["GPTJForCausalLM", "CTRLLMHeadModel"]
ENDLESS = ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForSequenceClassification", "GPTNeoXForCausalLM"]
ENDLESS += ["XLNetForSequenceClassification", "XLNetLMHeadModel", "BloomForCausalLM", "MambaForCausalLM"]
ENDLESS += ["TapasForSequenceClassification"]


@pytest.mark.parametrize("name", [*LEARNED, *FROM_PADDING, *COMPUTED, *ENDLESS])
def test_the_limit_is_where_the_forward_pass_fails(name):
    model = make(name)
    positions = InputLimits(model).positions
    assert positions == longest(model)
    assert positions == 0 if name in ENDLESS else positions == POSITIONS - 2 * (name in FROM_PADDING)


def test_t5_has_no_last_position():
    assert InputLimits(make("T5ForSequenceClassification")).positions == 0


def test_the_positions_of_images_are_no_limit_of_texts():
    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embedding, self.position_embedding = nn.Conv2d(1, 4, 2), nn.Embedding(3, 4)

    model = make("LlamaForCausalLM")
    model.vision = Vision()
    assert InputLimits(model).positions == 0


def test_a_model_that_tells_nothing_has_no_limits():
    limits = InputLimits(nn.Linear(2, 2))
    assert (limits.vocabulary, limits.positions, limits.token_types) == (0, 0, 0)
    limits.check({"input_ids": [10**9] * 100, "token_type_ids": [7] * 100}, 0, True)
    limits.check({"pixel_values": None}, 0, True)


@pytest.fixture(scope="module")
def roberta():
    return InputLimits(make("RobertaForSequenceClassification"))


def test_16_tokens_fit_into_robertas_18_positions_and_17_do_not(roberta):
    roberta.check({"input_ids": [5] * 16}, 4, False)
    with pytest.raises(QueryError) as caught:
        roberta.check({"input_ids": [5] * 17}, 4, False)
    assert str(caught.value) == "Query 4 has 17 tokens, the model takes at most 16: shorten it."


@pytest.mark.parametrize(
    "feature, message",
    [
        ({"input_ids": []}, "Query 4 is empty: it has no token."),
        ({"input_ids": 5}, "Query 4 has input_ids of shape (): expected one row of tokens."),
        ({"input_ids": [[[5]]]}, "Query 4 has input_ids of shape (1, 1, 1): expected one row of tokens."),
        ({"input_ids": [5.0, 6.0]}, "Query 4 has input_ids of torch.float32: expected integers."),
        ({"input_ids": [True, False]}, "Query 4 has input_ids of torch.bool: expected integers."),
        ({"input_ids": [5, None]}, "Query 4 has input_ids that are no numbers ("),
        ({"input_ids": ["a"]}, "Query 4 has input_ids that are no numbers ("),
        ({"input_ids": [2**70]}, "Query 4 has input_ids that are no numbers ("),
        ({"input_ids": [5, 60]}, "Query 4 holds token 60, the model knows 60 tokens: it was made with another token"),
        ({"input_ids": [5, -1]}, "Query 4 holds token -1, the model knows 60 tokens"),
        ({"input_ids": [5], "attention_mask": [1, 1]}, "Query 4 has 1 tokens, but 2 of attention_mask: expected as"),
        ({"input_ids": [5], "labels": [1, 1]}, "Query 4 has 1 tokens, but 2 of labels: expected as many."),
        ({"input_ids": [5], "labels": [60]}, "Query 4 has a label of token 60, the model knows 60 tokens"),
        ({"input_ids": [5], "labels": [-1]}, "Query 4 has a label of token -1, the model knows 60 tokens"),
        ({"input_ids": [5, 6], "labels": [-100, 0.5]}, "Query 4 has labels of torch.float32: expected integers."),
        ({"input_ids": [5], "position_ids": ["x"]}, "Query 4 has position_ids that are no numbers ("),
        ({"input_ids": [5], "token_type_ids": [2]}, "Query 4 has token type 2, the model knows 2 token types."),
        (
            {"input_ids": [5], "token_type_ids": [0.5]},
            "Query 4 has token_type_ids of torch.float32: expected integers",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_does_not_fit_is_named(roberta, feature, message):
    with pytest.raises(QueryError) as caught:
        roberta.check(feature, 4, labels_are_tokens=True)
    assert str(caught.value).startswith(message)


def test_labels_of_a_row_are_not_taken_for_tokens(roberta):
    roberta.check({"input_ids": [5, 6], "labels": [0.5, 1.0, 0.0]}, 4, labels_are_tokens=False)
    roberta.check({"input_ids": [5], "labels": 99}, 4, labels_are_tokens=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_small_integers_are_tokens(roberta, dtype):
    roberta.check({"input_ids": torch.tensor([5, 6], dtype=dtype)}, 4, True)


@pytest.mark.parametrize("name", ["label", "labels", "label_ids"])
@pytest.mark.parametrize("label", [2, -1, torch.tensor(7)], ids=str)
def test_a_class_that_the_model_does_not_know_is_named(roberta, name, label):
    with pytest.raises(QueryError) as caught:
        roberta.check_class({"input_ids": [5], name: label}, 4)
    assert str(caught.value) == f"Query 4 has label {int(label)}, the model knows 2 labels."


@pytest.mark.parametrize("label", [0, 1, -100, 0.5, 7.0, [0.0, 1.0], None], ids=str)
def test_a_class_an_ignored_one_and_numbers_are_fine(roberta, label):
    roberta.check_class({"input_ids": [5], "labels": label}, 4)

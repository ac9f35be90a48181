"""What a Trainer trained on is asked in the words of its dataset: each training row finds itself first."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures
from recordings import train_tokenizer
from trainings import ARGUMENTS
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from lorif_hf import InfluenceConfig
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import QueryError


COSINES = InfluenceConfig.grad_cos(projection_factor=1, dtype="float32")
TOKENIZER = train_tokenizer()
WORDS = ["The capital of France is", "Which training examples", "made my model say", "Paris is", "Rome and", "What"]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def llama(cls=LlamaForCausalLM, **options):
    torch.manual_seed(0)
    return cls(LlamaConfig(vocab_size=320, max_position_embeddings=64, pad_token_id=0, **SIZES, **options))


def train(cls, arguments, model, rows, path, processing_class=TOKENIZER, **options):
    callback = InfluenceCallback(path / "index", config=COSINES, raise_errors=True)
    settings = arguments(str(path / "out"), **ARGUMENTS, **options.pop("settings", {}))
    trainer = cls(
        model=model,
        args=settings,
        train_dataset=rows,
        processing_class=processing_class,
        callbacks=[callback],
        **options,
    )
    trainer.train()
    return trainer, callback.index


def finds_itself(index, model, queries, exact=True, **options):
    """Whether query i's best row is row i, with a cosine of 1 where both are the same gradient."""
    result = index.attribute(model, queries, top_k=1, **options)
    assert result.indices[:, 0].tolist() == list(range(len(index)))
    assert float(result.scores.min()) > (0.999 if exact else 0.5)
    return result


def following(place):
    return " " + WORDS[place % len(WORDS)]


TEXTS = [{"prompt": w, "chosen": following(i + 1), "rejected": following(i + 2)} for i, w in enumerate(WORDS)]


def turns(text, answer):
    return [{"role": "user", "content": text}], [{"role": "assistant", "content": answer}]


CHATS = [
    {"prompt": turns(w, "")[0], "chosen": turns("", f"yes {w}")[1], "rejected": turns("", "no")[1]} for w in WORDS
]


@pytest.mark.parametrize("rows", [TEXTS, CHATS], ids=["texts", "chats"])
def test_dpo(tmp_path, rows):
    """The gradient of DPO's loss of a pair is that of the difference of log-probabilities, times a number."""
    dataset = Dataset.from_list(rows)
    trainer, index = train(DPOTrainer, DPOConfig, llama(), dataset, tmp_path, ref_model=llama())
    result = finds_itself(index, trainer.model, dataset)
    assert result.measure == "difference" and "\nchosen: " in result.queries[0]
    finds_itself(index, trainer.model, trainer.train_dataset)
    one = index.attribute(trainer.model, {"prompt": "a b", "completion": " c"}, top_k=1)
    assert one.measure == "loss" and one.scores.shape == (1, 1)
    named = index.scores(trainer.model, {"prompt": "a b", "completion": " c"}, measure="log_prob")
    torch.testing.assert_close(named, index.scores(trainer.model, ("a b", " c")))


def test_a_reward_model(tmp_path):
    model = llama(LlamaForSequenceClassification, num_labels=1)
    trainer, index = train(RewardTrainer, RewardConfig, model, Dataset.from_list(TEXTS), tmp_path)
    assert finds_itself(index, trainer.model, Dataset.from_list(TEXTS)).measure == "difference"
    finds_itself(index, trainer.model, trainer.train_dataset)
    chosen, rejected = TOKENIZER("a b")["input_ids"], TOKENIZER("c")["input_ids"]
    rated = index.attribute(trainer.model, [{"input_ids": chosen}, {"input_ids": rejected}], top_k=2)
    assert rated.measure == "reward"
    with torch.no_grad():
        rewards = [float(trainer.model(torch.tensor([ids])).logits) for ids in (chosen, rejected)]
    assert [-loss for loss in rated.losses] == pytest.approx(rewards, rel=1e-4)
    pair = index.attribute(trainer.model, {"chosen_ids": chosen, "rejected_ids": rejected}, top_k=2)
    assert -pair.losses[0] == pytest.approx(rewards[0] - rewards[1], rel=1e-3)


def test_kto(tmp_path):
    rows = [{"prompt": w, "completion": following(i + 1), "label": i % 2 == 0} for i, w in enumerate(WORDS)]
    trainer, index = train(KTOTrainer, KTOConfig, llama(), Dataset.from_list(rows), tmp_path, ref_model=llama())
    finds_itself(index, trainer.model, Dataset.from_list(rows))
    finds_itself(index, trainer.model, trainer.train_dataset)


def test_completions_alone_are_measured_where_their_mask_says_so(tmp_path):
    rows = [{"prompt": w, "completion": following(i + 1)} for i, w in enumerate(WORDS)]
    trainer, index = train(SFTTrainer, SFTConfig, llama(), Dataset.from_list(rows), tmp_path)
    finds_itself(index, trainer.model, trainer.train_dataset)


def pictures():
    rng = np.random.default_rng(0)
    return [Pictures.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(6)]


def test_an_image_classifier(tmp_path):
    torch.manual_seed(0)
    names = {0: "cat", 1: "dog", 2: "cow"}
    model = ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=3, id2label=names))
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    images, labels = pictures(), [0, 1, 2, 0, 1, 2]
    pixels = [processor(images=image, return_tensors="np")["pixel_values"][0] for image in images]
    rows = Dataset.from_dict({"pixel_values": pixels, "labels": labels})
    trainer, index = train(Trainer, TrainingArguments, model, rows, tmp_path, processor)
    finds_itself(index, trainer.model, rows)
    finds_itself(index, trainer.model, rows.with_format("torch"))
    finds_itself(
        index, trainer.model, {"pixel_values": torch.tensor(np.stack(pixels)), "labels": torch.tensor(labels)}
    )
    features = Features({"image": Image(), "label": ClassLabel(names=list(names.values()))})
    seen = Dataset.from_dict({"image": images, "label": labels}, features=features)
    result = finds_itself(index, trainer.model, seen)
    assert result.queries[1].startswith("pixel_values 3 x 16 x 16")
    finds_itself(index, trainer.model, seen.cast_column("image", Image(decode=False)))
    images[4].save(tmp_path / "dog.png")
    for query in [(images[4], "dog"), {"image": str(tmp_path / "dog.png"), "label": 1}, (tmp_path / "dog.png", 1)]:
        assert index.attribute(trainer.model, query, top_k=1).indices.tolist() == [[4]]
    for bad, message in [
        ("a text", "Query 1 is text, but a ViTForImageClassification takes 'pixel_values'"),
        ({"input_ids": [1, 2]}, "Query 1 holds 'input_ids', but a ViTForImageClassification needs 'pixel_values'"),
        ({"image": tmp_path / "gone.png", "label": 1}, "The image of query 1 cannot be read (FileNotFoundError"),
        ((images[0], "horse"), "Query 1 has label 'horse'; the model's labels are cat, dog, cow."),
    ]:
        with pytest.raises(QueryError) as caught:
            index.attribute(trainer.model, [(images[0], 0), bad])
        assert str(caught.value).startswith(message)


def test_a_speech_recogniser(tmp_path):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8}
    limits = {"max_source_positions": 50, "max_target_positions": 20, "vocab_size": 320}
    ends = {"decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **heads, **limits, **ends))
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    processor = WhisperProcessor(extractor, TOKENIZER)
    sounds = [np.random.default_rng(i).random(8000).astype("float32") for i in range(6)]
    heard = [{"array": sound, "sampling_rate": 16000} for sound in sounds]
    features = [extractor(s, sampling_rate=16000, return_tensors="np")["input_features"][0] for s in sounds]
    tokens = [TOKENIZER(text)["input_ids"] for text in WORDS]
    rows = Dataset.from_dict(
        {"input_features": features, "labels": [[*ids, *[-100] * (9 - len(ids))] for ids in tokens]}
    )
    trainer, index = train(Trainer, TrainingArguments, model, rows, tmp_path, processor)
    assert finds_itself(index, trainer.model, rows).queries[0].endswith(f"→ {WORDS[0]}")
    queries = [{"audio": sound, "sentence": text} for sound, text in zip(heard, WORDS, strict=True)]
    finds_itself(index, trainer.model, queries)
    by_token = index.attribute(trainer.model, queries[:2], top_k=2, per_token=True)
    assert ["".join(tokens) for tokens in by_token.tokens] == WORDS[:2]
    scores = index.scores(trainer.model, queries[:2], token=-1)
    assert scores.shape == (2, 6)
    with pytest.raises(QueryError, match="Query 0 has audio of 8000 Hz, the feature extractor expects 16000 Hz: res"):
        index.scores(trainer.model, {"audio": {"array": sounds[0], "sampling_rate": 8000}, "text": "a"})

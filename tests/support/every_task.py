"""Tiny models and rows of every kind of task, and each row's own loss and gradient by autograd."""

import torch
from kinds import VOCABULARY, rows_of
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from truth import GRADIENTS, gram

from lorif_hf import InfluenceIndex


LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def t5(seed=0):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, pad_token_id=0, **sizes))


def bart(cls=BartForConditionalGeneration):
    torch.manual_seed(0)
    halves = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _BART.items()}
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "d_model": 16, **halves}
    return cls(BartConfig(pad_token_id=0, decoder_start_token_id=2, init_std=0.2, **sizes))


def blenderbot():
    """Looks its positions up as (T,), in the encoder and the decoder."""
    torch.manual_seed(0)
    halves = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _BART.items()}
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "d_model": 16, **halves}
    return BlenderbotForConditionalGeneration(BlenderbotConfig(pad_token_id=0, bos_token_id=1, init_std=0.2, **sizes))


_BART = {"layers": 2, "attention_heads": 2, "ffn_dim": 24}


def translations(count=6):
    sources = rows_of((6, 3, 7, 2, 8, 4))[:count]
    targets = rows_of((3, 5, 2, 6, 4, 7), seed=1)
    return [source | {"labels": target["input_ids"]} for source, target in zip(sources, targets, strict=False)]


def vit(**options):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "num_labels": 3, "initializer_range": 0.2}
    return ViTForImageClassification(ViTConfig(**LAYERS, **sizes, **options))


def resnet():
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))


def images(count=6, size=16):
    generator = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.randn(3, size, size, generator=generator).tolist(), "labels": i % 3}
        for i in range(count)
    ]


def whisper():
    torch.manual_seed(0)
    halves = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _BART.items()}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    sizes = {"num_mel_bins": 8, "d_model": 16, "max_source_positions": 10, "max_target_positions": 12}
    quiet = {"suppress_tokens": None, "begin_suppress_tokens": None, "init_std": 0.2}
    return WhisperForConditionalGeneration(WhisperConfig(vocab_size=VOCABULARY, **halves, **tokens, **sizes, **quiet))


def spectrograms(count=6):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_features": torch.randn(8, 20, generator=generator).tolist(),
            "labels": torch.randint(4, VOCABULARY, (2 + i % 4,), generator=generator).tolist(),
        }
        for i in range(count)
    ]


def wav2vec2(cls=Wav2Vec2ForCTC, **options):
    torch.manual_seed(0)
    heard = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    heard |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_length": 2}
    config = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "vocab_size": 12, "pad_token_id": 0}
    return cls(Wav2Vec2Config(**LAYERS, **heard, **config | options))


def sounds(count=6):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_values": torch.randn(160 + 20 * (i % 3), generator=generator).tolist(),
            "labels": torch.randint(1, 12, (2 + i % 4,), generator=generator).tolist(),
        }
        for i in range(count)
    ]


def padded_sounds(features):
    """What a data collator for CTC does."""
    values = [torch.tensor(feature["input_values"]) for feature in features]
    labels = [torch.tensor(feature["labels"]) for feature in features]
    return {
        "input_values": torch.nn.utils.rnn.pad_sequence(values, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones(len(v)).long() for v in values], True),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def batch_of(row):
    return {key: torch.tensor([value]) for key, value in row.items()}


def row_loss(model, row):
    """The model's own loss of a row alone."""
    return model(**batch_of(row)).loss


def token_sum(model, row):
    """The same where it is a mean over the labels that count."""
    batch = batch_of(row)
    return model(**batch).loss * (batch["labels"] != -100).sum()


def index_of(model, rows, tmp_path, **options):
    return InfluenceIndex.build(model, rows, tmp_path / "index", config=GRADIENTS, batch_size=4, **options)


def errors(index, model, rows, loss=row_loss):
    """Relative errors of the losses that the index holds, and of the squared norms of its gradients."""
    expected = torch.tensor([loss(model.eval(), row).item() for row in rows], dtype=torch.float64)
    losses = torch.tensor([example["loss"] for example in index.examples(list(range(len(rows))))]).double()
    squares = gram(index, model, rows, loss).diagonal()
    assert squares.max() > 0
    return (
        float((losses - expected).abs().max() / expected.abs().max()),
        float((index.self_influence() - squares).abs().max() / squares.max()),
    )


def assert_recorded(index, model, rows, objective, loss=row_loss, together=True):
    """The index holds what autograd says, by this objective, several rows at once."""
    assert index.manifest.objective == objective and index.manifest.alone is not together
    assert max(errors(index, model, rows, loss)) < 1e-5

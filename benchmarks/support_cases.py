"""What people train, made small: models, rows and Trainers of every task, layer kind and adapter that is promised."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments


VOCABULARY, ROWS = 64, 6
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
ENCODER = {k: v for k, v in TEXT.items() if k not in ("num_key_value_heads", "head_dim")}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
    "init_std": 0.2,
}
VIT = {
    **{k: ENCODER[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
    **{"image_size": 16, "patch_size": 8, "num_labels": 3, "initializer_range": 0.2},
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}
WHISPER = {
    **{key: size for key, size in SEQ2SEQ.items() if key != "pad_token_id"},
    **{"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3},
    **{"suppress_tokens": None, "begin_suppress_tokens": None},
}
WAV2VEC2 = {
    **{k: ENCODER[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
    **{"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_length": 2, "vocab_size": 10},
    **{"feat_extract_norm": "layer", "do_stable_layer_norm": True, "pad_token_id": 0},
}
CLIP = {
    "text_config": {**ENCODER, "projection_dim": 8},
    "vision_config": {**VIT, "projection_dim": 8},
    "projection_dim": 8,
}
ARGUMENTS = {
    "max_steps": 1,
    "per_device_train_batch_size": 3,
    "learning_rate": 1e-4,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "bf16": False,
    "remove_unused_columns": True,
}


@dataclass(frozen=True)
class Case:
    """Something that people train.

    Args:
        model (`str`): as the table names it.
        task (`str`): what it is trained for.
        make (`Callable`): makes the Trainer, with its outputs below a folder.
        trainer (`str`): as the table names it.
        adapter (`str`): what PEFT trains of it.
        target (`str`): `target_modules`.
        queries (`Callable`, *optional*): from the Trainer to its rows as queries; by default the rows themselves.
        coverage (`float`): the least share of the trained parameters.
        refused (`str`, *optional*): what the error says, where it is refused before the training.
    """

    model: str
    task: str
    make: Callable[[Path], Any]
    trainer: str = "Trainer"
    adapter: str = "none"
    target: str = "all-linear"
    queries: Callable[[Any], Any] | None = None
    coverage: float = 0.0
    refused: str | None = None

    @property
    def name(self) -> str:
        return ", ".join((self.model, self.task, self.trainer, self.adapter, self.target))


def model(name: str, config: str, sizes: Mapping[str, Any] = TEXT, **more: Any) -> Callable[[], Any]:
    """Makes a random model of a class of transformers."""

    def made() -> Any:
        torch.manual_seed(0)
        network = getattr(transformers, name)(getattr(transformers, config)(**{**sizes, **more}))
        network.config.use_cache = False
        return network.eval()

    return made


def adapted(made: Callable[[], Any], **options: Any) -> Callable[[], Any]:
    """The same with an adapter."""

    def with_adapter() -> Any:
        torch.manual_seed(1)
        return get_peft_model(made(), LoraConfig(**{"r": 2, "init_lora_weights": False, **options}))

    return with_adapter


def plain(made: Callable[[], Any], rows: Callable[[], list[dict[str, Any]]], collator: Any = None, **more: Any) -> Any:
    """Makes a Trainer of transformers."""

    def trainer(path: Path) -> Trainer:
        arguments = TrainingArguments(str(path / "out"), **{**ARGUMENTS, **more})
        dataset = Dataset.from_list(rows())
        return Trainer(made(), arguments, train_dataset=dataset, data_collator=collator and collator())

    return trainer


# Rows.


def random_ids(seed: int, least: int = 4, most: int = 9, count: int = ROWS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(least, most, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def token_rows() -> list[dict[str, Any]]:
    return [{"input_ids": ids, "labels": ids} for ids in random_ids(0)]


def labelled(label: Callable[[int], Any], name: str = "labels", length: int | None = None) -> Callable[[], Any]:
    """Rows of tokens with a label each."""

    def rows() -> list[dict[str, Any]]:
        ids = random_ids(1) if length is None else random_ids(1, length, length + 1)
        return [
            {"input_ids": row, "attention_mask": [1] * len(row), name: label(number)} for number, row in enumerate(ids)
        ]

    return rows


def masked_rows() -> list[dict[str, Any]]:
    rows = []
    for ids in random_ids(2, 6, 10):
        labels = [token if place % 3 == 1 else -100 for place, token in enumerate(ids)]
        rows.append({"input_ids": [3 if place % 3 == 1 else t for place, t in enumerate(ids)], "labels": labels})
    return rows


def tagged_rows() -> list[dict[str, Any]]:
    return [{"input_ids": ids, "labels": [(t + i) % 3 for i, t in enumerate(ids)]} for ids in random_ids(3)]


def span_rows() -> list[dict[str, Any]]:
    return [
        {"input_ids": ids, "start_positions": 1, "end_positions": 1 + n % 3} for n, ids in enumerate(random_ids(4))
    ]


def choice_rows() -> list[dict[str, Any]]:
    choices = [random_ids(5 + number, 5, 6, 3) for number in range(ROWS)]
    ones = [[1] * 5] * 3
    return [{"input_ids": ids, "attention_mask": ones, "labels": n % 3} for n, ids in enumerate(choices)]


def pair_rows() -> list[dict[str, Any]]:
    targets = random_ids(7, 3, 6)
    return [{"input_ids": ids, "labels": [*t, 2]} for ids, t in zip(random_ids(6), targets, strict=True)]


def padded() -> Any:
    """Pads tokens; labels are of the whole row."""
    return transformers.DataCollatorWithPadding(make_tokenizer())


def padded_labels() -> Any:
    """Pads tokens and their labels."""
    return transformers.DataCollatorForSeq2Seq(make_tokenizer())


def contrastive_rows() -> list[dict[str, Any]]:
    images = image_rows()
    ids = random_ids(9, 5, 6)
    return [{"pixel_values": i["pixel_values"], "input_ids": t} for i, t in zip(images, ids, strict=True)]


def image_rows(size: int = 16) -> list[dict[str, Any]]:
    images = torch.randn(ROWS, 3, size, size, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": image.tolist(), "labels": number % 3} for number, image in enumerate(images)]


def speech_rows() -> list[dict[str, Any]]:
    features = torch.randn(ROWS, 8, 40, generator=torch.Generator().manual_seed(0))
    targets = random_ids(8, 4, 5)
    return [{"input_features": f.tolist(), "labels": t} for f, t in zip(features, targets, strict=True)]


def sound_rows() -> list[dict[str, Any]]:
    sounds = torch.randn(ROWS, 1600, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(1, 8, (ROWS, 3), generator=torch.Generator().manual_seed(1))
    return [{"input_values": s.tolist(), "labels": t.tolist()} for s, t in zip(sounds, targets, strict=True)]


# TRL.

WORDS = "the capital of France is Paris and that of Italy is Rome which lies on a river with seven hills".split()
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }} </s>{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "<user>", "<assistant>", *dict.fromkeys(WORDS)]
    known += [str(number) for number in range(VOCABULARY - len(known))]
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.mask_token = "<mask>"
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def texts(seed: int, count: int = ROWS) -> list[str]:
    """Short texts that begin with a space, so that they go behind each other."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randint(len(WORDS), (4 + n % 3,), generator=generator).tolist() for n in range(count)]
    return [f" {n} " + " ".join(WORDS[i] for i in row) for n, row in enumerate(chosen)]


def sft_rows(kind: str, count: int) -> dict[str, Any]:
    asked, said = texts(0, count), texts(1, count)
    if kind == "text":
        return {"text": asked}
    if kind == "completion":
        return {"prompt": asked, "completion": said}
    pairs = zip(asked, said, strict=True)
    return {"messages": [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in pairs]}


def sft(made: Callable[[], Any], kind: str = "text", count: int = ROWS, **more: Any) -> Callable[[Path], Any]:
    """Makes TRL's SFTTrainer."""

    def trainer(path: Path) -> Any:
        from trl import SFTConfig, SFTTrainer

        arguments = SFTConfig(str(path / "out"), **{**ARGUMENTS, "max_length": 32, **more})
        dataset = Dataset.from_dict(sft_rows(kind, count))
        return SFTTrainer(made(), arguments, train_dataset=dataset, processing_class=make_tokenizer())

    return trainer


def preferences(kind: str, made: Callable[[], Any], reference: bool = False, **more: Any) -> Callable[[Path], Any]:
    """Makes TRL's DPOTrainer, RewardTrainer or KTOTrainer."""

    def trainer(path: Path) -> Any:
        import trl

        arguments = getattr(trl, f"{kind}Config")(str(path / "out"), **{**ARGUMENTS, "max_length": 32, **more})
        pairs = {"prompt": texts(0), "chosen": texts(1), "rejected": texts(2)}
        options = {"ref_model": made()} if reference else {}
        return getattr(trl, f"{kind}Trainer")(
            made(),
            args=arguments,
            train_dataset=Dataset.from_dict(pairs),
            processing_class=make_tokenizer(),
            **options,
        )

    return trainer


def completions(trainer: Any) -> list[dict[str, str]]:
    """The pairs as queries: what was chosen and rejected of each."""
    return [{"prompt": a, "chosen": b, "rejected": c} for a, b, c in zip(texts(0), texts(1), texts(2), strict=True)]


def documents(trainer: Any) -> list[dict[str, Any]]:
    """The documents of packed rows, as queries."""
    loader = trainer.get_train_dataloader()
    queries = []
    for row in loader.dataset:
        batch, start = loader.collate_fn([row]), 0
        for length in row["seq_lengths"]:
            part = slice(start, start + length)
            queries.append({key: batch[key][0, part].tolist() for key in ("input_ids", "labels")})
            start += length
    return queries

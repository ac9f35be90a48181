"""Trainings on packed rows, and what the gradient of each document must be."""

import torch
from datasets import Dataset
from peft import LoraConfig
from recordings import VOCABULARY, build, train_tokenizer
from trainings import ARGUMENTS
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer
from truth import GRADIENTS

from lorif_hf.callbacks import InfluenceCallback


GENERATION = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}<eos>{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
_WORDS = "which capital says made model France Rome Italy Paris training examples what its them of is".split()


def texts_of(count, seed=0, most=8):
    """Texts that differ from each other, of 2 words and more."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for number in range(count):
        chosen = torch.randint(
            len(_WORDS), (int(torch.randint(2, most, (1,), generator=generator)),), generator=generator
        )
        texts.append(f"{number} " + " ".join(_WORDS[i] for i in chosen))
    return texts


def rows_of(kind, count):
    """A dataset for SFT: plain texts, prompts with completions, or chats."""
    texts = texts_of(count)
    if kind == "text":
        return Dataset.from_dict({"text": texts})
    if kind == "completion":
        return Dataset.from_dict({"prompt": texts, "completion": [f" {text[::-1]}" for text in texts]})
    chats = [[("user", text), ("assistant", text[::-1]), ("user", "?")] for text in texts]
    chats = [[{"role": role, "content": content} for role, content in chat] for chat in chats]
    return Dataset.from_dict({"messages": chats})


def model_of(kind):
    if kind != "qwen3":
        return build(kind, n_positions=64) if kind == "gpt2" else build(kind, max_position_embeddings=64)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen3Config(vocab_size=VOCABULARY, head_dim=8, num_key_value_heads=1, initializer_range=0.3, **sizes)
    return Qwen3ForCausalLM(config)


def sft(path, model="llama", data="text", count=20, lora=False, **arguments):
    """An SFTTrainer that has not begun."""
    tokenizer = train_tokenizer()
    tokenizer.chat_template = GENERATION
    names = ["c_attn"] if model == "gpt2" else ["q_proj", "down_proj"]
    adapter = LoraConfig(r=2, target_modules=names, init_lora_weights=False, fan_in_fan_out=model == "gpt2")
    return SFTTrainer(
        model=model_of(model),
        args=SFTConfig(str(path / "out"), **(ARGUMENTS | {"max_length": 64, "packing": True} | arguments)),
        train_dataset=rows_of(data, count),
        processing_class=tokenizer,
        peft_config=adapter if lora else None,
    )


def recorded(path, trainer, **options):
    """The index that the callback makes of a training."""
    callback = InfluenceCallback(path / "index", **{"config": GRADIENTS, "raise_errors": True, **options})
    trainer.add_callback(callback)
    trainer.train()
    return callback.index


def stored(index):
    """Every gradient that an index of plain gradients holds, by module: (N, I, O)."""
    shards = [index._queried.reader.load(shard, index.manifest.modules) for shard in index.manifest.shards]
    return {name: torch.cat([shard[name]["g"] for shard in shards]).double() for name in shards[0]}


def document_errors(index, model, collate, dataset, loss):
    """Relative error of each document's gradient: autograd of the document's loss within its packed row.

    Args:
        loss: of a batch, summed over its targets.
    """
    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    names = [entry.name for entry in index.manifest.modules]
    weights = [modules[name].weight for name in names]
    conv = [type(modules[name]).__name__ == "Conv1D" for name in names]
    flags = [weight.requires_grad for weight in weights]
    model.eval()
    for weight in weights:
        weight.requires_grad_(True)
    found, errors, losses = stored(index), [], []
    for number, example in enumerate(index.examples(range(len(index)))):
        batch = dict(collate([dataset[example["source_row"]]]))
        others = torch.ones_like(batch["labels"], dtype=torch.bool)
        others[:, example["start"] : example["stop"]] = False
        value = loss(batch | {"labels": batch["labels"].masked_fill(others, -100)})
        parts = torch.autograd.grad(value, weights, allow_unused=True)
        parts = [torch.zeros_like(w) if part is None else part for part, w in zip(parts, weights, strict=True)]
        true = [part.double() if same else part.double().T for part, same in zip(parts, conv, strict=True)]
        size = sum(float(part.square().sum()) for part in true) ** 0.5
        wrong = sum(float((part - found[name][number]).square().sum()) for part, name in zip(true, names, strict=True))
        errors.append(wrong**0.5 / max(size, 1e-9) if size else wrong**0.5)
        losses.append(abs(value.item() - example["loss"]) / max(1e-3, abs(value.item())))
    for weight, flag in zip(weights, flags, strict=True):
        weight.requires_grad_(flag)
    return max(errors), max(losses)


def trainer_errors(index, trainer):
    """The largest relative error of a document's gradient, and of its loss, as the Trainer trained it."""

    def loss(batch):
        return trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(1))

    loader = trainer.get_train_dataloader()
    return document_errors(index, trainer.model, loader.collate_fn, trainer.train_dataset, loss)

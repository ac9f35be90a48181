"""A short training that leaves checkpoints, and TracIn over them by autograd."""

import json

import torch
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2, make_rows
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments
from truth import own_sum


def make_lora(seed=0):
    torch.manual_seed(seed + 1)
    return get_peft_model(make_gpt2(seed), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))


def collate(features):
    width = max(len(feature["input_ids"]) for feature in features)
    ids = torch.tensor([list(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
    return {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100), "attention_mask": (ids != 0).long()}


def train(folder, model=None, rows=None, **arguments):
    """Six steps with a learning rate that falls, a checkpoint after each second one."""
    defaults = {
        "max_steps": 6,
        "save_steps": 2,
        "save_strategy": "steps",
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    model, rows = make_gpt2() if model is None else model, make_rows(8) if rows is None else rows
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(folder), **(defaults | arguments)),
        train_dataset=rows,
        data_collator=collate,
    )
    trainer.train()
    return trainer


def load(folder):
    return GPT2LMHeadModel.from_pretrained(folder)


def logged(folder):
    """The learning rate of each step, as the Trainer logged it."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}


def dot_products(model, names, queries, rows):
    """(Q, N) inner products of gradients in the layers of these names, float64."""
    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    weights = [modules[name].weight for name in names]
    flags = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    model.eval()

    def gradient(row):
        parts = torch.autograd.grad(own_sum(model, row), weights)
        return torch.cat([part.flatten().double() for part in parts])

    found = torch.stack([gradient(q) for q in queries]) @ torch.stack([gradient(row) for row in rows]).T
    for weight, flag in zip(weights, flags, strict=True):
        weight.requires_grad_(flag)
    return found

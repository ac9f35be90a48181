"""Small trainings with the callback, and what their indices must say."""

import torch
from tiny import VOCABULARY, make_rows
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from truth import GRADIENTS, row_gradients

from lorif_hf.callbacks import InfluenceCallback


ARGUMENTS = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "bf16": False,
}


def make_llama(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=32, pad_token_id=0, **sizes))


def make_texts(count=10):
    return [" ".join(map(str, row["input_ids"])) for row in make_rows(count)]


def errors_of(index, trainer, dataset=None):
    """Relative error of each row's squared gradient, by autograd of `compute_loss` on a batch of that row."""
    loader = trainer.get_train_dataloader()
    dataset = loader.dataset if dataset is None else dataset
    trainer.model.eval()
    squares = []
    for row in range(len(dataset)):
        batch = loader.collate_fn([dataset[row]])
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(1))
        parts = row_gradients(index, trainer.model, loss).values()
        squares.append(sum(float(part.square().sum()) for part in parts))
    expected = torch.tensor(squares, dtype=torch.float64)
    return (index.self_influence() - expected).abs() / expected.max()


def trained(tmp_path, make, **options):
    callback = InfluenceCallback(tmp_path / "index", config=GRADIENTS, raise_errors=True, **options)
    trainer = make(tmp_path)
    trainer.add_callback(callback)
    trainer.train()
    return trainer, callback.index


def plain(tmp_path, tokenizer, cls=Trainer, compute_loss_func=None, **arguments):
    rows = make_rows(10)
    return cls(
        model=make_llama(),
        args=TrainingArguments(str(tmp_path / "out"), **(ARGUMENTS | arguments)),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        compute_loss_func=compute_loss_func,
    )

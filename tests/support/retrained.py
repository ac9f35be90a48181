"""A tiny training that worker processes can import, and the bank of 3 subsets x 2 seeds that it makes in seconds."""

import os
import signal
import tempfile
import time
import uuid
from pathlib import Path

import torch
from tiny import make_gpt2, make_rows
from transformers import Trainer, TrainingArguments

from lorif_hf.evaluation.retraining.retrain import retrain


ROWS = make_rows(12)
QUERIES = make_rows(3, seed=7)
SMALL = {"num_subsets": 3, "seeds": 2}


def collate(features):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(feature["input_ids"]) for feature in features], True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def make_trainer(train_dataset, seed, model=None, **arguments):
    """One epoch of a GPT-2 of width 12."""
    defaults = {
        "output_dir": tempfile.gettempdir(),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": seed,
    }
    args = TrainingArguments(**(defaults | arguments))
    return Trainer(model=model or make_gpt2(), args=args, train_dataset=train_dataset, data_collator=collate)


def make_bank(folder, make=make_trainer, **options):
    return retrain(make, ROWS, QUERIES, folder, **(SMALL | options))


class Interrupted:
    """`make_trainer` whose `at`-th training ends as `how` says; they are counted in a folder, over all processes."""

    def __init__(self, folder, at, how):
        self.folder, self.at, self.how = Path(folder), at, how

    def __call__(self, train_dataset, seed):
        trainer = make_trainer(train_dataset, seed)
        train = trainer.train

        def counted():
            (self.folder / f"training-{os.getpid()}-{uuid.uuid4()}").touch()
            if len(list(self.folder.glob("training-*"))) >= self.at:
                if self.how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.how == "hang":
                    time.sleep(600)
                raise ValueError("bad luck")
            train()

        trainer.train = counted
        return trainer


def bank_bytes(folder):
    """Every file of a bank, which has no others."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

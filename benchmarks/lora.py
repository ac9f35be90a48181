"""The test bed of benchmark (c): LoRA adapters on a small Llama that is pre-trained on the other file of WikiText-2.

Only the adapters are trained, retrained and indexed.

    python -m benchmarks.quality lora          # the bank, and our indices
    python -m benchmarks.lora_others           # dattri-llm, bergson and kronfluence on the same bank
"""

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from .wikitext import SHARED, VOCABULARY, TestBed


TRAIN, QUERIES = 300, 40
RANK = 8  # of the adapters, on every linear layer but the head
PRETRAINING_EPOCHS = 6
EPOCHS, LEARNING_RATE, BATCH = 5, 3e-3, 8


class LoraBed:
    """Tokenizer, data, base and adapters in one folder, made at the first use.

    Args:
        folder (`Path`): where they are kept.
        data (`Path`, *optional*): folder with `valid.txt` (pre-training) and `test.txt` (adapters, queries).
    """

    def __init__(self, folder: Path, data: Path = SHARED):
        self.folder, self.texts = Path(folder).resolve(), TestBed(folder, data)

    @property
    def tokenizer(self) -> Any:
        return self.texts.tokenizer

    def split(self) -> tuple[Dataset, Dataset]:
        """300 training blocks and 40 query blocks of the adapters' file, drawn without overlap.

        All are of its first articles, so that every query has rows that it is about.
        """
        blocks = self.texts.blocks("test.txt")[: TRAIN + QUERIES]
        random.Random(0).shuffle(blocks)
        tokenizer = self.tokenizer
        train, queries = (
            Dataset.from_dict({"input_ids": part, "labels": part, "text": tokenizer.batch_decode(part)})
            for part in (blocks[:TRAIN], blocks[TRAIN : TRAIN + QUERIES])
        )
        return train, queries

    def base(self) -> LlamaForCausalLM:
        """The model that every adapter is put on, and that nobody trains further."""
        path = self.folder / "base"
        if not path.exists():
            set_seed(0)
            config = LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=2048,  # bergson takes no batch of more tokens than this
                bos_token_id=0,
                eos_token_id=0,
                pad_token_id=0,
                tie_word_embeddings=False,
            )
            blocks = self.texts.blocks("valid.txt")
            data = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
            trainer = self._trainer(LlamaForCausalLM(config), data, 0, PRETRAINING_EPOCHS, 1e-3)
            trainer.train()
            trainer.save_model(str(path))
            self.tokenizer.save_pretrained(path)
        return LlamaForCausalLM.from_pretrained(path)

    def finetuned(self) -> PeftModel:
        """The adapters that are indexed, trained on all rows."""
        path = self.folder / "adapter"
        if not path.exists():
            trainer = self.make_trainer(self.split()[0], seed=0)
            trainer.train()
            trainer.save_model(str(path))
            self.tokenizer.save_pretrained(path)  # bergson looks for it beside the adapter
        return PeftModel.from_pretrained(self.base(), path, is_trainable=True)

    def make_trainer(self, train_dataset: Dataset, seed: int) -> Trainer:
        """The training that the bank repeats on subsets: new adapters, drawn with the seed."""
        set_seed(seed)  # of the adapters, which are drawn before the Trainer seeds
        lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        return self._trainer(get_peft_model(self.base(), lora), train_dataset, seed, EPOCHS, LEARNING_RATE)

    def _trainer(self, model: Any, data: Dataset, seed: int, epochs: float, learning_rate: float) -> Trainer:
        args = TrainingArguments(
            output_dir=str(self.folder / "trainer"),
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            weight_decay=0.0,
            seed=seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )
        return Trainer(model=model, args=args, train_dataset=data)

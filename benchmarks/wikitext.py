"""The test bed of benchmark (a): a small GPT-2, pre-trained on one file of WikiText-2 and fine-tuned on the other.

Everything is made on the spot: the tokenizer is trained, the model starts from its config.
"""

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed


BLOCK = 64  # tokens per example
VOCABULARY = 2048
TRAIN, QUERIES = 2000, 100
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "wikitext-2"


class TestBed:
    """Tokenizer, data and models in one folder, made at the first use.

    Args:
        folder (`Path`): where the tokenizer and the two models are kept.
        data (`Path`, *optional*): folder with `valid.txt` (pre-training) and `test.txt` (fine-tuning, queries).
    """

    __test__ = False  # no test of pytest's

    def __init__(self, folder: Path, data: Path = SHARED):
        self.folder, self.data = Path(folder), Path(data)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        path = self.folder / "tokenizer"
        if not path.exists():
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
            tokenizer.train([str(self.data / name) for name in ("valid.txt", "test.txt")], trainer)
            fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
            fast.pad_token = fast.eos_token
            fast.save_pretrained(path)
        return PreTrainedTokenizerFast.from_pretrained(path)

    def blocks(self, name: str) -> list[list[int]]:
        """The blocks of a file, in its order."""
        tokenizer = self.tokenizer
        lines = (self.data / name).read_text(encoding="utf-8").splitlines(keepends=True)
        ids = [token for line in tokenizer(lines)["input_ids"] for token in line]
        return [ids[start : start + BLOCK] for start in range(0, len(ids) - BLOCK + 1, BLOCK)]

    def split(self) -> tuple[Dataset, Dataset]:
        """2,000 training blocks and 100 query blocks of the fine-tuning file, drawn without overlap."""
        blocks = self.blocks("test.txt")
        random.Random(0).shuffle(blocks)
        tokenizer = self.tokenizer
        chosen = blocks[:TRAIN], blocks[TRAIN : TRAIN + QUERIES]
        train, queries = (
            Dataset.from_dict({"input_ids": part, "labels": part, "text": tokenizer.batch_decode(part)})
            for part in chosen
        )
        return train, queries

    def pretrained(self) -> GPT2LMHeadModel:
        """The model that every fine-tuning begins with."""
        path = self.folder / "pretrained"
        if not path.exists():
            set_seed(0)
            config = GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=BLOCK,
                n_embd=128,
                n_layer=2,
                n_head=4,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=0,
                eos_token_id=0,
            )
            blocks = self.blocks("valid.txt")
            data = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
            trainer = self._trainer(GPT2LMHeadModel(config), data, seed=0, epochs=8)
            trainer.train()
            trainer.save_model(str(path))
        return GPT2LMHeadModel.from_pretrained(path)

    def finetuned(self) -> GPT2LMHeadModel:
        """The model that is indexed: fine-tuned on all training blocks."""
        path = self.folder / "finetuned"
        if not path.exists():
            trainer = self.make_trainer(self.split()[0], seed=0)
            trainer.train()
            trainer.save_model(str(path))
        return GPT2LMHeadModel.from_pretrained(path)

    def make_trainer(self, train_dataset: Dataset, seed: int) -> Trainer:
        """The fine-tuning that the bank repeats on subsets."""
        return self._trainer(self.pretrained(), train_dataset, seed, epochs=3)

    def _trainer(self, model: Any, data: Dataset, seed: int, epochs: float) -> Trainer:
        args = TrainingArguments(
            output_dir=str(self.folder / "trainer"),
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
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

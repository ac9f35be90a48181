"""The test bed of benchmark (b): a text classifier, a tenth of whose training labels are wrong.

Which of the eight longest Wikipedia articles of WikiText-2's smaller files is a snippet from? The model has been
pre-trained to tell the other articles apart. Everything is made on the spot: the tokenizer is trained, the model
starts from its config.
"""

import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from .wikitext import SHARED


CLASSES = 8
SNIPPET = 32  # tokens per example, with [CLS] and [SEP]
VOCABULARY = 4096
TRAIN, QUERIES, HELD_OUT = 1200, 100, 200
FLIPPED = 0.1  # of the training rows
PRETRAINING_EPOCHS = 8
EPOCHS, LEARNING_RATE, BATCH = 8, 1e-4, 32  # at 5e-4 two seeds of one subset agree half as well
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


class MislabeledBed:
    """Tokenizer, data and models in one folder, made at the first use.

    Args:
        folder (`Path`): where the tokenizer and the model are kept.
        data (`Path`, *optional*): folder with `valid.txt` and `test.txt`, the articles.
    """

    sizes = (TRAIN, QUERIES, HELD_OUT)

    def __init__(self, folder: Path, data: Path = SHARED):
        self.folder, self.data = Path(folder), Path(data)

    def articles(self) -> list[tuple[str, str]]:
        """Title and text of all articles, longest first. The first ones are the classes, in this order."""
        articles = []
        for name in ("valid.txt", "test.txt"):
            text = (self.data / name).read_text(encoding="utf-8")
            titles = list(re.finditer(r"^ = ([^=\n]+) = *$", text, re.MULTILINE))
            ends = [match.start() for match in titles[1:]] + [len(text)]
            articles += [
                (title[1], " ".join(text[title.end() : end].split())) for title, end in zip(titles, ends, strict=True)
            ]
        return sorted(articles, key=lambda article: -len(article[1].split()))

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        path = self.folder / "tokenizer"
        if not path.exists():
            tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            tokenizer.normalizer = normalizers.BertNormalizer()
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=_SPECIAL, show_progress=False)
            tokenizer.train_from_iterator((text for _, text in self.articles()), trainer)
            tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
            fast = PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
            )
            fast.save_pretrained(path)
        return PreTrainedTokenizerFast.from_pretrained(path)

    def split(self) -> tuple[Dataset, Dataset]:
        """The training rows, a tenth of them with a wrong label (column `flipped`), and clean queries."""
        count, queries, _ = self.sizes
        snippets = self._snippets()
        train = snippets[:count]
        wrong = set(random.Random(1).sample(range(count), round(FLIPPED * count)))
        draw = random.Random(2)
        for row in sorted(wrong):
            text, label = train[row]
            train[row] = text, (label + draw.randrange(1, CLASSES)) % CLASSES
        flipped = [row in wrong for row in range(count)]
        return self._dataset(train).add_column("flipped", flipped), self._dataset(snippets[count : count + queries])

    def held_out(self) -> Dataset:
        """Clean rows that are neither trained on nor asked for, to measure accuracy."""
        count, queries, held_out = self.sizes
        return self._dataset(self._snippets()[count + queries : count + queries + held_out])

    def pretrained(self) -> BertForSequenceClassification:
        """The model that every training begins with: trained to tell the other articles apart, with a new head."""
        path = self.folder / "pretrained"
        if not path.exists():
            others = self.articles()[CLASSES:]
            rows = [(piece, label) for label, (_, text) in enumerate(others) for piece in self._pieces(text)]
            set_seed(0)
            model = BertForSequenceClassification(
                BertConfig(
                    vocab_size=VOCABULARY,
                    hidden_size=128,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    intermediate_size=512,
                    max_position_embeddings=SNIPPET,
                    hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                    num_labels=len(others),
                    problem_type="single_label_classification",
                    pad_token_id=0,
                )
            )
            self._trainer(model, self._dataset(rows), seed=0, epochs=PRETRAINING_EPOCHS, learning_rate=1e-3).train()
            model.config.num_labels = model.num_labels = CLASSES
            model.classifier = nn.Linear(model.config.hidden_size, CLASSES, device=model.device)
            model.save_pretrained(path)
        return BertForSequenceClassification.from_pretrained(path)

    def finetuned(self) -> BertForSequenceClassification:
        """The model that is indexed: fine-tuned on all training rows."""
        path = self.folder / "finetuned"
        if not path.exists():
            trainer = self.make_trainer(self.split()[0], seed=0)
            trainer.train()
            trainer.save_model(str(path))
        return BertForSequenceClassification.from_pretrained(path)

    def make_trainer(self, train_dataset: Dataset, seed: int) -> Trainer:
        """The fine-tuning that the bank repeats on subsets."""
        return self._trainer(self.pretrained(), train_dataset, seed, EPOCHS, LEARNING_RATE)

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
        return Trainer(model=model, args=args, train_dataset=data, processing_class=self.tokenizer)

    def _pieces(self, text: str) -> list[str]:
        """A text cut into pieces of as many tokens as an example holds."""
        spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        starts = [span[0] for span in spans[:: SNIPPET - 2]]
        return [text[start:end].strip() for start, end in pairwise(starts)]

    def _snippets(self) -> list[tuple[str, int]]:
        """Pieces of the articles with their class, as many of each, shuffled."""
        each = -(-sum(self.sizes) // CLASSES)
        snippets = []
        for label, (_, text) in enumerate(self.articles()[:CLASSES]):
            snippets += [(piece, label) for piece in random.Random(label).sample(self._pieces(text), each)]
        random.Random(0).shuffle(snippets)
        return snippets

    def _dataset(self, rows: list[tuple[str, int]]) -> Dataset:
        texts = [text for text, _ in rows]
        encoded = self.tokenizer(texts, truncation=True, max_length=SNIPPET)
        return Dataset.from_dict(
            {
                "input_ids": encoded["input_ids"],
                "attention_mask": encoded["attention_mask"],
                "labels": [label for _, label in rows],
                "text": texts,
            }
        )

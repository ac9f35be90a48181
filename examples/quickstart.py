"""Train a small GPT-2 on Python's own language reference, then ask which passages made it say something.

Needs nothing but the installed project: the text is `pydoc_data.topics`, which every CPython carries, and the
tokenizer is trained on the spot. About two minutes on two cores.

    python examples/quickstart.py [output folder]
"""

import re
import shutil
import sys
import textwrap
from pathlib import Path
from pydoc_data.topics import topics

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lorif_hf import Attribution, InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback


# Things the language reference says; a Python user can judge which passages should come up.
QUESTIONS = [
    ('The "with" statement is used to wrap the execution', " of a block with methods defined by a context manager"),
    ("Lambda expressions are used to create", " anonymous functions"),
    ('A function which uses the "yield" statement', " is called a generator function"),
]

MAX_TOKENS = 96


def passages() -> Dataset:
    """The language reference, cut into passages of at most 400 characters, each under the name of its topic."""
    rows = []
    for topic, text in sorted(topics.items()):
        # Underlines of headings and the like teach nothing; what is left are paragraphs.
        for part in re.split(r"\n\s*\n", re.sub(r"^\s*[*=~^\"-]{4,}\s*$", "", text, flags=re.MULTILINE)):
            paragraph = " ".join(part.split())
            for passage in textwrap.wrap(paragraph, width=400, break_long_words=False, break_on_hyphens=False):
                if len(passage) >= 80:
                    rows.append({"example_id": topic, "text": passage})
    unique = list({row["text"]: row for row in rows}.values())  # the topics overlap
    return Dataset.from_list(unique)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's, of 2,048 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def train(folder: Path, epochs: float = 7) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, InfluenceIndex]:
    """Train the model with `Trainer`; the callback leaves an index of the training set in `folder`/index."""
    set_seed(0)
    dataset = passages()
    tokenizer = train_tokenizer(list(dataset["text"]))
    tokenized = dataset.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=MAX_TOKENS), batched=True)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=MAX_TOKENS,
            n_embd=128,
            n_layer=3,
            n_head=4,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    callback = InfluenceCallback(folder / "index", batch_size=32, examples=dataset)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "model"),
            num_train_epochs=epochs,
            per_device_train_batch_size=8,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=30,
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            seed=0,
        ),
        train_dataset=tokenized,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    assert callback.index is not None
    return model, tokenizer, callback.index


def show(result: Attribution) -> None:
    """Print the ranked rows of each question."""
    console = Console()
    for question in result:
        table = Table(title=question.queries[0], title_justify="left", expand=True)
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("row", justify="right")
        table.add_column("topic")
        table.add_column("training example", ratio=1)
        for row in question.to_list():
            table.add_row(
                f"{row['score']:+.3g}", str(row["row"]), row["example_id"], row["text"][:160], end_section=True
            )
        console.print(table, markup=False)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    shutil.rmtree(folder / "index", ignore_errors=True)  # each run trains another model
    model, _, index = train(folder)
    result = index.attribute(model, QUESTIONS, top_k=5)
    show(result)
    result.save_html(folder / "attribution.html")
    print(f"\n{index}\nThe same as a page: {folder / 'attribution.html'}")


if __name__ == "__main__":
    main()

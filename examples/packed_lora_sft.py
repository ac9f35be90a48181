"""Fine-tune a LoRA adapter on packed chats with TRL, and ask which chat made it answer so.

TRL packs several chats into one row of the training set, so that few tokens are padding. In the index each chat is a
row of its own, which knows its place: the packed row that holds it, and its tokens there. The chats hold facts that
come with Python: status codes of HTTP and errors of the operating system. Each fact is told in two chats, in
different words: asked in those of the one, the index should name the other one too.

    python examples/packed_lora_sft.py [output folder]
"""

import errno
import os
import random
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

from datasets import Dataset
from ingredients import pictures
from ingredients.small_models import answers, fresh_folder, train_tokenizer, trained, training_arguments
from ingredients.standard_library import docstrings
from matplotlib.patches import Rectangle
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from lorif_hf import InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback


# The two chats that tell a fact ask about it in these words.
WORDINGS = {
    "status": ["What does the HTTP status {} mean?", "A server says {}. What does it mean?"],
    "error": ["What does the error {} mean?", "My program says {}. What does it mean?"],
}
PACKED = 192  # tokens of a packed row
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def facts() -> list[tuple[str, str, str]]:
    """(kind, name, meaning) of what Python itself knows."""
    known = [("status", str(status.value), status.phrase) for status in HTTPStatus]
    known += [("error", name, os.strerror(number)) for number, name in sorted(errno.errorcode.items())]
    return known


def as_chat(question: str, answer: str | None = None) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": question}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def pretrained(tokenizer: PreTrainedTokenizerFast, texts: list[str], folder: Path, epochs: float) -> LlamaForCausalLM:
    """A small Llama that has read these texts: the base of the adapter."""
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rows = Dataset.from_dict(tokenizer(texts, truncation=True, max_length=64))
    trainer = Trainer(
        model=model,
        args=training_arguments(folder, num_train_epochs=epochs, learning_rate=2e-3),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trained(trainer)
    return model


def run(folder: Path, count: int = 40, prose: int = 80, epochs: float = 60, asked: int = 8) -> list[dict[str, Any]]:
    """Pre-train, fine-tune on packed chats, ask. Returns of each question the answer, whether it is right, and the
    chats that are named."""
    index_folder = fresh_folder(folder / "index")
    chosen = random.Random(0).sample(facts(), count)
    chats = [
        {"prompt": as_chat(wording.format(name)), "completion": as_chat("", meaning)[1:]}
        for kind, name, meaning in chosen
        for wording in WORDINGS[kind]
    ]
    # The base has read the answers, but not which question they answer.
    texts = [meaning for _, _, meaning in chosen]
    texts += [piece.text for package in ("asyncio", "email", "logging") for piece in docstrings(package)[:prose]]
    words = texts + [row["prompt"][0]["content"] for row in chats]
    tokenizer = train_tokenizer(words, special_tokens=["<|user|>", "<|assistant|>"])
    tokenizer.chat_template = TEMPLATE
    base = pretrained(tokenizer, texts, folder / "base", epochs=4)

    set_seed(0)
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(
            output_dir=str(folder / "adapter"),
            packing=True,
            max_length=PACKED,
            num_train_epochs=epochs,
            per_device_train_batch_size=2,
            learning_rate=5e-3,
            lr_scheduler_type="cosine",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        ),
        train_dataset=Dataset.from_list(chats),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[InfluenceCallback(index_folder)],
    )
    trained(trainer)
    trainer.save_model()
    index = InfluenceIndex.from_pretrained(index_folder)
    print(
        f"{len(chats)} chats in {len(trainer.train_dataset)} packed rows are {len(index)} rows of the index, of "
        f"{index.bytes_per_example:,.0f} bytes each; it covers {index.coverage.share:.0%} of what was trained."
    )

    questions = [WORDINGS[kind][0].format(name) for kind, name, _ in chosen[:asked]]
    prompts = [
        tokenizer.apply_chat_template(as_chat(question), tokenize=False, add_generation_prompt=True)
        for question in questions
    ]
    said = [text.strip() for text in answers(trainer.model, tokenizer, prompts, max_new_tokens=40)]
    result = index.attribute(trainer.model, [as_chat(*pair) for pair in zip(questions, said, strict=True)], top_k=10)
    figures = []
    for question, answer, fact, ranking in zip(questions, said, chosen, result, strict=False):
        _, name, meaning = fact
        named = ranking.to_list()
        about = [row["rank"] for row in named if f"{name}" in row["text"] and meaning in row["text"]]
        figures.append(
            {"question": question, "answer": answer, "right": answer == meaning, "named": named, "ranks": about}
        )
    show(figures)
    draw(figures[0], index, folder / "packed-lora-sft.png")
    result.save_html(folder / "answers.html")
    print(f"The chats behind each answer: {folder / 'answers.html'}")
    return figures


def show(figures: list[dict[str, Any]]) -> None:
    table = Table(title="Which chat made it answer so?", title_justify="left", expand=True)
    for column in ("question", "answer", "right", "chat named first", "in packed row", "ranks of the fact's chats"):
        table.add_column(column)
    for figure in figures:
        first = figure["named"][0]
        place = f"{first['source_row']}, tokens {first['start']} to {first['stop']}"
        ranks = ", ".join(map(str, figure["ranks"]))
        right = "yes" if figure["right"] else "no"
        table.add_row(figure["question"], figure["answer"], right, first["text"], place, ranks)
    Console().print(table, markup=False)


def draw(figure: dict[str, Any], index: InfluenceIndex, path: Path) -> None:
    """The packed rows of the chats that are named first, the darker the higher a chat scores."""
    scores = {row["row"]: row["score"] for row in figure["named"]}
    packed = list(dict.fromkeys(row["source_row"] for row in figure["named"]))[:6]
    drawn, (panel,) = pictures.figure(1, height=0.5 * len(packed) + 1.2)
    for chat in index.examples(list(range(len(index)))):
        if chat["source_row"] in packed:
            strength = max(scores.get(chat["row"], 0), 0) / max(scores.values())
            place, width = packed.index(chat["source_row"]), chat["stop"] - chat["start"]
            box = Rectangle(
                (chat["start"], place - 0.38), width, 0.76, facecolor=pictures.GREEN, alpha=0.06 + 0.94 * strength
            )
            panel.add_patch(box)
            panel.add_patch(
                Rectangle((chat["start"], place - 0.38), width, 0.76, fill=False, edgecolor="white", linewidth=1.5)
            )
    panel.set(xlim=(0, PACKED), xlabel="token of the packed row")
    panel.set_yticks(range(len(packed)), [f"packed row {row}" for row in packed])
    panel.set_ylim(len(packed) - 0.5, -0.5)
    pictures.title(panel, f"{figure['question']} {figure['answer']}")
    pictures.save(drawn, path)


if __name__ == "__main__":
    run(Path(sys.argv[1] if len(sys.argv) > 1 else "packed-output"))

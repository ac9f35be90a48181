"""What a reader of the pages has at hand: a model, an index of it and a bank, in a folder and on the Hub."""

import json
import shutil

import pytest
from huggingface_hub import HfApi
from retrained import QUERIES, ROWS, make_bank, make_trainer
from tiny import make_gpt2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, TrainingArguments

from lorif_hf import InfluenceConfig, InfluenceIndex, app


LLAMA = "meta-llama/Llama-2-7b-hf"


def word_tokenizer():
    """A token a word, for the words of the pages' queries; any other is the unknown one."""
    words = "<pad> ? The capital of France is Paris . What does make my model say this".split()
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="?")


def trained_rows():
    """Rows of one length with labels, as the Trainer's own collator takes them."""
    ids = [[*row["input_ids"], *range(1, 16)][:15] for row in ROWS]
    return ROWS.remove_columns("input_ids").add_column("input_ids", ids).add_column("labels", ids)


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory):
    """`my-model`, `my-index`, `bank` and files of rows and questions, as the pages call them. To be copied, not
    changed."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "rows.txt").write_text("The capital of France is Paris .\nWhat does make my model say this\n")
    questions = [{"query": "The capital of France is Paris"}]
    questions += [{"prompt": "The capital of France is", "completion": " Paris"}]
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    model, tokenizer = make_gpt2(), word_tokenizer()
    model.save_pretrained(folder / "my-model")
    tokenizer.save_pretrained(folder / "my-model")
    make_bank(folder / "bank")
    InfluenceIndex.build(model, ROWS, folder / "my-index", processing_class=tokenizer)
    return folder


@pytest.fixture
def reader(reader_folder, tmp_path, monkeypatch, hub):
    """Somebody who is `me` on the Hub, where the model and an index of it are, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.add_token("hf_reader", "me"))
    api = HfApi(token="hf_reader")
    api.create_repo("me/my-model")
    api.upload_folder(repo_id="me/my-model", folder_path=reader_folder / "my-model")
    InfluenceIndex.from_pretrained(reader_folder / "my-index").push_to_hub("me/my-index")
    llama = HfApi(token=hub.add_token("hf_llama", "meta-llama"))
    llama.create_repo(LLAMA)
    config = LlamaConfig(num_hidden_layers=2, architectures=["LlamaForCausalLM"]).to_dict()
    llama.upload_file(repo_id=LLAMA, path_in_repo="config.json", path_or_fileobj=json.dumps(config).encode())
    return tmp_path


@pytest.fixture
def folder(reader, reader_folder):
    """The reader's folder, with `my-model`, `my-index`, `bank` and files of rows and of queries in it."""
    shutil.copytree(reader_folder, reader, dirs_exist_ok=True)
    sentences = ["The capital of France is Paris", "What does my model say", "Paris is the capital"]
    for name in ("rows.txt", "questions.txt"):
        (reader / name).write_text("\n".join(sentences))
    (reader / "questions.jsonl").write_text("\n".join(map(json.dumps, sentences)))
    return reader


@pytest.fixture
def names(reader, reader_folder):
    """What blocks of Python take for granted. The training leaves the model what it is: that of the Hub."""
    args = {"max_steps": 1, "learning_rate": 0.0, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return {
        "InfluenceConfig": InfluenceConfig,
        "InfluenceIndex": InfluenceIndex,
        "args": TrainingArguments("out", **args),
        "dataset": trained_rows(),
        "index": InfluenceIndex.from_pretrained(reader_folder / "my-index"),
        "make_trainer": make_trainer,
        "model": make_gpt2(),
        "queries": QUERIES,
        "tokenizer": word_tokenizer(),
    }


@pytest.fixture
def served(monkeypatch):
    """The apps that are served: each leaves the next command its turn, and ends with the test."""
    apps = []
    launch = app.launch
    monkeypatch.setattr(app, "launch", lambda *given, **named: apps.append(launch(*given, **named, block=False)))
    yield apps
    for each in apps:
        each.close()

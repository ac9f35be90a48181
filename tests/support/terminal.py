"""The command line as a person meets it, and a model with an index to ask with it."""

import json
import re
from pathlib import Path

from datasets import Dataset
from tiny import make_gpt2, plain_config
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from lorif_hf import InfluenceIndex
from lorif_hf.commands import program
from lorif_hf.storage.layout import signed


REPO = "user/my-index"
SENTENCES = ["the cat sat on the mat", "a dog ran in the park", "the dog sat", "cats run in a park", "a cat ran", "on"]
ESCAPES = "\x1b[31mred\x1b[0m \x1b]8;;http://evil.example\x07click\x1b]8;;\x07 \x9b2J \r\x08gone \x7f\u202emirror"
MARKUP = "[red]rich[/red] [/nothing] [link=http://evil.example]x[/link] \\[bold] \\"
EMOJI = "a :warning: is no sign, nor is d[1:x:2]"
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")  # all but line ends


def train_tokenizer():
    """A tokenizer of at most the 50 tokens that the tiny model knows."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=["<pad>", "?"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="?")


def save_model_and_index(folder):
    """`model`, with its tokenizer, and `index`, of five sentences named a to e, in a folder."""
    tokenizer = train_tokenizer()
    texts = [text for text in SENTENCES if " " in text]
    rows = Dataset.from_dict({"input_ids": tokenizer(texts)["input_ids"], "text": texts, "example_id": list("abcde")})
    make_gpt2().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = plain_config(projection_factor=2, shard_size=2)
    InfluenceIndex.build(make_gpt2(), rows, folder / "index", config=config, processing_class=tokenizer)
    return folder


def run(*arguments, stdin=None, **environment):
    """A command's result, with `stdout`, `stderr` and `exit_code`; what a user would see as a traceback is raised."""
    settings = {"COLUMNS": "160", "HF_TOKEN": ""} | environment
    result = CliRunner().invoke(program, [str(argument) for argument in arguments], input=stdin, env=settings)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments, code=1, **options):
    """The message of a command that must fail as a person expects: on stderr, no traceback, nothing printed."""
    result = run(*arguments, **options)
    assert result.exit_code == code and result.stdout == "", result.output
    assert result.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in result.output
    return result.stderr.splitlines()[-1].removeprefix("error: ")


def edit(folder, change):
    """Change the manifest of an index, as its author might have."""
    manifest = json.loads((folder / "influence_config.json").read_text())
    change(manifest)
    (folder / "influence_config.json").write_text(signed(json.dumps(manifest)))


def documented(command):
    """The JSON that docs/command-line.md shows of a command."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    section = page.partition(f"\n### {command} --json\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    return json.loads(re.search(r"^```json\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[1])


def differences(said, shown, place="$"):
    """Where JSON is of another form than what is documented: other fields, or values of another type. "..." among the
    fields stands for others; null may stand for anything."""
    if isinstance(said, dict) and isinstance(shown, dict):
        fields = shown.keys() - {"..."}
        unlike = fields - said.keys() if "..." in shown else fields ^ said.keys()
        found = [f"{place}.{name}" for name in sorted(unlike)]
        return found + [
            d for name in fields & said.keys() for d in differences(said[name], shown[name], f"{place}.{name}")
        ]
    if isinstance(said, list) and isinstance(shown, list):
        return [d for item in said for d in differences(item, shown[0], f"{place}[]")] if shown else []
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (said, shown))
    return [] if None in (said, shown) or numbers or type(said) is type(shown) else [place]

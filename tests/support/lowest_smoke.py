"""A little of everything, as a program: `test_lowest` runs it with the lowest versions that the package allows.

Prints the versions of the packages that its arguments name, as JSON. The environment says where the Hub is.
"""

import json
import sys
import tempfile
from importlib.metadata import entry_points, version
from pathlib import Path

import evaluate
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_gpt2, make_rows
from transformers import Trainer, TrainingArguments

import lorif_hf
from lorif_hf import InfluenceIndex
from lorif_hf.callbacks import InfluenceCallback


def collate(features):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(feature["input_ids"]) for feature in features], True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def train(model, rows, folder, **options):
    """Three steps, and the callback with its index."""
    args = TrainingArguments(
        str(folder / "out"), max_steps=3, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collate)
    callback = InfluenceCallback(folder / "index", trainer=trainer, raise_errors=True, **options)
    trainer.add_callback(callback)
    trainer.train()
    return callback.index


def ranked(index, model, rows):
    """The best rows of the first rows themselves as queries, and what people see of them."""
    result = index.attribute(model, [{"input_ids": ids} for ids in rows["input_ids"][:2]], top_k=3)
    assert torch.isfinite(result.scores).all() and result.scores.shape == (2, 3)
    frame = result.to_pandas()
    assert len(frame) == 6 and set(frame["text"]) <= set(rows["text"])
    return result


def main(folder):
    rows, model = make_rows(12), make_gpt2()
    built = InfluenceIndex.build(model, rows, folder / "built")
    assert built.coverage.share > 0.5 and len(built.self_influence()) == 12
    ranked(built, model, rows).save_html(folder / "page.html")
    assert "text" in (folder / "page.html").read_text()

    trained = train(model, rows, folder / "trained", push_to_hub=True, repo_id="user/my-index")
    pulled = InfluenceIndex.from_pretrained("user/my-index", streaming=True)
    expected, found = (ranked(index, model, rows) for index in (trained, pulled))
    assert torch.equal(expected.indices, found.indices) and pulled.commit

    adapted = get_peft_model(make_gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    index = train(adapted, rows, folder / "adapted")
    assert index.coverage.share == 1 and index.push_to_hub("user/my-adapter").oid
    ranked(index, adapted, rows)

    assert evaluate.load(lorif_hf.metric("lds")).name == "lds"
    (command,) = entry_points(group="console_scripts", name="lorif-hf")
    for words in (["--help"], ["info", "user/my-index"], ["verify", str(folder / "built")]):
        sys.argv = ["lorif-hf", *words]
        try:
            command.load()()
        except SystemExit as stop:
            assert not stop.code, words


names = sys.argv[1:]
with tempfile.TemporaryDirectory() as name:
    main(Path(name))
print(json.dumps({name: version(name) for name in names}))

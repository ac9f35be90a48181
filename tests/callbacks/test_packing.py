"""Whatever way rows are packed: each document is a row of the index, with the gradient that training saw."""

import pytest
import torch
from datasets import Dataset
from packed import model_of, recorded, sft, texts_of, trainer_errors
from recordings import train_tokenizer
from trainings import ARGUMENTS, errors_of
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from lorif_hf import InfluenceConfig
from lorif_hf.callbacks import InfluenceCallback
from lorif_hf.errors import DatasetError


def test_two_hundred_packed_documents_are_two_hundred_rows(tmp_path):
    trainer = sft(tmp_path, count=200)
    texts = trainer.processing_class.batch_decode(
        [ids[start:stop] for ids, start, stop in documents_of(trainer.train_dataset)]
    )
    index = recorded(tmp_path, trainer)
    assert len(index) == 200 and len(trainer.train_dataset) < 100
    examples = index.examples(range(200))
    assert [example["text"] for example in examples] == texts and len(set(texts)) == 200
    assert index.manifest.objective == "causal-lm" and not index.manifest.alone
    gradient, loss = trainer_errors(index, trainer)
    assert gradient < 1e-5 and loss < 1e-5


def documents_of(dataset):
    for row in dataset:
        start = 0
        for length in row["seq_lengths"]:
            yield row["input_ids"], start, start + length
            start += length


@pytest.mark.parametrize("lora", [False, True], ids=["all", "LoRA"])
@pytest.mark.parametrize(
    "model, data, options",
    [
        ("llama", "messages", {"assistant_only_loss": True}),
        ("qwen3", "completion", {"completion_only_loss": True}),
        ("gpt2", "text", {}),
        ("gpt2", "messages", {"assistant_only_loss": True}),
    ],
    ids=["Llama, assistant", "Qwen3, completion", "GPT-2", "GPT-2, assistant"],
)
def test_the_gradient_of_each_document_is_autograds(tmp_path, model, data, options, lora):
    trainer = sft(tmp_path, model, data, count=12, lora=lora, **options)
    index = recorded(tmp_path, trainer)
    assert len(index) == 12 and index.manifest.objective == "causal-lm"
    gradient, loss = trainer_errors(index, trainer)
    assert gradient < 1e-5 and loss < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"packing_strategy": "bfd", "max_length": 12},
        {"packing_strategy": "bfd_split", "max_length": 16},
        {"shuffle_dataset": True, "pad_to_multiple_of": 8, "eval_packing": False},
    ],
    ids=["cut off", "split", "shuffled and padded"],
)
def test_every_way_to_pack_whole_documents(tmp_path, options):
    trainer = sft(tmp_path, count=16, **options)
    pieces = [length for row in trainer.train_dataset for length in row["seq_lengths"]]
    index = recorded(tmp_path, trainer)
    examples = index.examples(range(len(index)))
    assert [example["num_tokens"] for example in examples] == pieces and len(pieces) >= 16
    assert index.manifest.objective == "causal-lm" and max(trainer_errors(index, trainer)) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora": True, "model": "gpt2"},
        {"data": "completion", "completion_only_loss": True},
        {"padding_free": True},
    ],
    ids=["all", "LoRA", "completion", "padding-free"],
)
def test_blocks_are_told_apart_by_their_tokens_and_see_each_other(tmp_path, options):
    """Attention goes over the ends of documents: a document's gradient is that of its own loss, through all of it."""
    trainer = sft(tmp_path, **{"count": 14, "packing_strategy": "wrapped", "max_length": 24, **options})
    end = trainer.processing_class.eos_token_id
    index = recorded(tmp_path, trainer)
    assert index.manifest.alone and max(trainer_errors(index, trainer)) < 1e-5
    examples = index.examples(range(len(index)))
    for example in examples:
        ids = trainer.train_dataset[example["source_row"]]["input_ids"][example["start"] : example["stop"]]
        assert end not in ids[:-1] and example["num_tokens"] == len(ids)
    # As many documents as were packed; those that blocks cut have the same number in both.
    assert {example["document"] for example in examples} == set(range(14)) and len(index) > 14


def test_pieces_of_a_document_are_ranked_together_on_request(tmp_path):
    trainer = sft(tmp_path, count=14, packing_strategy="wrapped", max_length=24)
    index = recorded(tmp_path, trainer)
    query = {"input_ids": trainer.train_dataset[1]["input_ids"]}
    scores = index.scores(trainer.model, query)[0]
    documents = torch.tensor([example["document"] for example in index.examples(range(len(index)))])
    sums = torch.zeros(14).index_add(0, documents, scores)
    ranked = index.attribute(trainer.model, query, top_k=14, by_document=True)
    order = sums.argsort(descending=True)
    torch.testing.assert_close(ranked.scores[0], sums[order])
    for entry, number in zip(ranked.to_list(), order.tolist(), strict=True):
        assert entry["document"] == number
        assert entry["pieces"] == (documents == number).nonzero()[:, 0].tolist()
        assert scores[entry["row"]] == scores[entry["pieces"]].max()


def test_a_packed_document_ranks_itself_first(tmp_path):
    trainer = sft(tmp_path, count=30)
    index = recorded(tmp_path, trainer, config=InfluenceConfig())
    for row in (3, 17, 29):
        place = index.examples([row])[0]
        packed = trainer.train_dataset[place["source_row"]]
        query = {name: packed[name][place["start"] : place["stop"]] for name in ("input_ids", "labels")}
        assert int(index.attribute(trainer.model, query, top_k=1).indices) == row


def test_a_loss_of_the_trainers_own_goes_document_by_document(tmp_path):
    trainer = sft(tmp_path, count=10, label_smoothing_factor=0.2)
    index = recorded(tmp_path, trainer)
    assert index.manifest.objective == "trainer" and max(trainer_errors(index, trainer)) < 1e-5


def test_padding_free_rows_are_documents(tmp_path):
    trainer = sft(tmp_path, count=12, packing=False, padding_free=True, max_length=None, lora=True)
    index = recorded(tmp_path, trainer)
    assert len(index) == 12 and index.manifest.objective == "causal-lm" and not index.manifest.alone
    assert float(errors_of(index, trainer).max()) < 1e-5 and "source_row" not in index.examples([0])[0]


def test_a_flattening_collator_of_a_plain_trainer(tmp_path):
    texts = train_tokenizer()(texts_of(12))["input_ids"]
    trainer = Trainer(
        model=model_of("llama"),
        args=TrainingArguments(str(tmp_path / "out"), **ARGUMENTS),
        train_dataset=Dataset.from_dict({"input_ids": texts}),
        data_collator=DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True),
    )
    index = recorded(tmp_path, trainer)
    assert len(index) == 12 and index.manifest.objective == "causal-lm"
    assert float(errors_of(index, trainer).max()) < 1e-5


def test_packed_rows_without_a_trace_are_refused_before_the_first_step(tmp_path):
    steps = []

    class Watching(InfluenceCallback):
        def on_step_end(self, *args, **kwargs):
            steps.append(1)

    trainer = SFTTrainer(
        model=model_of("llama"),
        args=SFTConfig(str(tmp_path / "out"), packing=True, packing_strategy="wrapped", max_length=16, **ARGUMENTS),
        train_dataset=Dataset.from_dict({"input_ids": [[9, 10, 11, 12, 13]] * 20}),
        processing_class=train_tokenizer(),
        callbacks=[Watching(tmp_path / "index")],
    )
    with pytest.raises(DatasetError, match="nothing tells the documents in them apart: .* Pack with packing_strategy"):
        trainer.train()
    assert not steps

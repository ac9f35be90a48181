"""Whatever way rows are packed: each document is a row of the index, with the gradient that training saw."""

import pytest
from packed import recorded, sft, trainer_errors


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


@pytest.mark.parametrize("model", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize(
    "data, options",
    [
        ("text", {}),
        ("text", {"lora": True}),
        ("completion", {"completion_only_loss": True}),
        ("completion", {"completion_only_loss": True, "lora": True}),
        ("messages", {"assistant_only_loss": True}),
        ("messages", {"assistant_only_loss": True, "lora": True}),
    ],
    ids=["all", "all LoRA", "completion", "completion LoRA", "assistant", "assistant LoRA"],
)
def test_the_gradient_of_each_document_is_autograds(tmp_path, model, data, options):
    trainer = sft(tmp_path, model, data, count=16, **options)
    index = recorded(tmp_path, trainer)
    assert len(index) == 16 and index.manifest.objective == "causal-lm"
    gradient, loss = trainer_errors(index, trainer)
    assert gradient < 1e-5 and loss < 1e-5

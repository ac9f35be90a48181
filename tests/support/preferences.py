"""Small preference trainings with TRL, and rows for them."""

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from trainings import ARGUMENTS, make_llama, make_texts
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer


def words():
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(50)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", unk_token="0", eos_token="1")


def pairs():
    texts = make_texts()
    return Dataset.from_dict({"prompt": ["7 8 "] * 10, "chosen": texts, "rejected": texts[::-1]})


def adapter(task_type="CAUSAL_LM"):
    return LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type=task_type, init_lora_weights=False)


def dpo(path, *, reference=False, peft_config=None, dataset=None, tokenizer=None, **arguments):
    return DPOTrainer(
        model=make_llama(),
        ref_model=make_llama(seed=1) if reference else None,
        args=DPOConfig(str(path / "out"), max_length=32, **(ARGUMENTS | arguments)),
        train_dataset=pairs() if dataset is None else dataset,
        processing_class=tokenizer or words(),
        peft_config=peft_config,
    )


def make_reward_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=50, max_position_embeddings=32, pad_token_id=0, num_labels=1, **sizes)
    return LlamaForSequenceClassification(config)


def reward(path, *, peft_config=None, dataset=None, **arguments):
    return RewardTrainer(
        model=make_reward_model(),
        args=RewardConfig(str(path / "out"), max_length=32, **(ARGUMENTS | arguments)),
        train_dataset=pairs().remove_columns("prompt") if dataset is None else dataset,
        processing_class=words(),
        peft_config=peft_config,
    )


def kto(path, *, peft_config=None, **arguments):
    rows = {"prompt": ["7 8 "] * 10, "completion": make_texts(), "label": [i % 3 > 0 for i in range(10)]}
    return KTOTrainer(
        model=make_llama(),
        ref_model=None if peft_config else make_llama(seed=1),
        args=KTOConfig(str(path / "out"), max_length=32, **(ARGUMENTS | arguments)),
        train_dataset=Dataset.from_dict(rows),
        processing_class=words(),
        peft_config=peft_config,
    )


def losses_alone(trainer):
    """What `compute_loss` says of each row alone."""
    loader = trainer.get_train_dataloader()
    trainer.model.eval()
    with torch.no_grad():
        batches = [loader.collate_fn([loader.dataset[row]]) for row in range(len(loader.dataset))]
        return torch.stack([trainer.compute_loss(trainer.model, dict(batch)) for batch in batches])


def whole_batch(trainer):
    loader = trainer.get_train_dataloader()
    return loader.collate_fn([loader.dataset[row] for row in range(len(loader.dataset))])

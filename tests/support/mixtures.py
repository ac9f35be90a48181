"""Tiny mixtures of experts, rows of uneven lengths, and each row's gradients by autograd of the model's own loss."""

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    JambaConfig,
    MixtralConfig,
    NemotronHConfig,
    OlmoeConfig,
    Qwen3MoeConfig,
)

from lorif_hf.algebra.projection import TwoSidedProjection
from lorif_hf.layers.selection import Selection
from lorif_hf.recording.recorder import GradientRecorder
from lorif_hf.tasks import task_of
from lorif_hf.tasks.objectives import LossObjective


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
_ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1}
_MAMBA = {"use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4}
MIXTURES = {
    "mixtral": (MixtralConfig, {"num_local_experts": 4}),
    "qwen3-moe": (Qwen3MoeConfig, {"num_experts": 4, "head_dim": 8}),
    "gpt-oss": (GptOssConfig, {"num_local_experts": 4, "head_dim": 8}),
    "olmoe": (OlmoeConfig, {"num_experts": 4}),
    "deepseek-v3": (
        DeepseekV3Config,
        {**_LATENT, **_ROUTED, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 2},
    ),
    "jamba": (JambaConfig, {**_MAMBA, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1}),
    "nemotron-h": (NemotronHConfig, {**_ROUTED, "layers_block_type": ["moe", "attention"], "moe_latent_size": None}),
}


def mixture(name, implementation="eager", **options):
    """A model with random weights, also those that are made as zeros."""
    config, sizes = MIXTURES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**{**SIZES, "num_experts_per_tok": 2, **sizes, **options})).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.3)
    model.set_experts_implementation(implementation)
    return model


def batch_of(lengths=(7, 4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, 40, (length,), generator=generator)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths).unsqueeze(1)).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def row_losses(model, batch):
    """Of each row without its padding, the model's own loss, summed over its targets."""
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        alone = {key: value[row : row + 1, :length] for key, value in batch.items()}
        yield model(**alone, num_items_in_batch=torch.tensor(1)).loss


def autograd(model, tracked, batch):
    """Per layer, (B, I, O)."""
    gradients = {t.name: [] for t in tracked}
    for loss in row_losses(model, batch):
        parts = torch.autograd.grad(loss, [t.weight for t in tracked], allow_unused=True)
        for t, part in zip(tracked, parts, strict=True):
            gradients[t.name].append(t.kind.as_matrix(torch.zeros_like(t.weight) if part is None else part))
    return {name: torch.stack(rows) for name, rows in gradients.items()}


def tracked_of(model, target="all"):
    return Selection(model, target).modules


def recorder_of(model, tracked, objective=None, **options):
    """A recorder of whole gradients."""
    whole = {t.name: TwoSidedProjection(None, None) for t in tracked}
    return GradientRecorder(model, tracked, whole, LossObjective(task_of(model, objective)), **options)


def recorded(model, tracked, batch, **options):
    with recorder_of(model, tracked, **options) as recorder:
        return recorder.record(batch)


def errors_of(found, expected):
    """Per layer, the distance as a share of the layer's gradients, or of a ten-thousandth of the largest layer's."""
    floor = 1e-4 * max(float(rows.norm()) for rows in expected.values())
    return {
        name: float((found[name].double() - rows.double()).norm()) / max(float(rows.norm()), floor)
        for name, rows in expected.items()
    }

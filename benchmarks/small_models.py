"""Every causal language model and every classifier of transformers, small, from its own config's defaults.

A config's sizes are set by their names; what names do not tell is in `SPECIAL`, by the class.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto


CAUSAL_LM, CLASSIFIER = "causal-lm", "sequence-classification"
VOCABULARY = 99
PLAIN_TOKENS = (3, 64)  # ids without a meaning of their own: those below are padding, start and end; images above
END = 2
LAYERS = 2
LABELS = 3

# What a field of this name is set to, where the default is more.
_SIZES = {
    32: "hidden_size d_model n_embd dim embedding_size emb_dim embedding_dim word_embed_proj_dim "
    "input_embedding_size output_embedding_size prediction_head_size hidden_size_global "
    "attention_hidden_size lru_width backbone_hidden_size d_latents out_hidden_size output_channels "
    "entity_emb_size pronunciation_embed_dim shape_embed_dim",
    48: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff d_inner dff dim_ff hidden_dim "
    "feed_forward_size ffn_hidden_size dense_intermediate_size mlp_dim",
    16: "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size "
    "expert_ffn_hidden_size shared_intermediate_size moe_shared_expert_intermediate_size "
    "router_hidden_size intra_bottleneck_size d_rel prompt_mid_dim coordinate_size shape_size "
    "xpath_unit_hidden_size codebook_dim",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "linear_num_heads num_encoder_attention_heads num_decoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts swa_num_attention_heads linear_num_value_heads "
    "time_step_rank mamba_dt_rank attention_window num_self_attention_heads num_cross_attention_heads "
    "rel_extent num_landmarks segment_means_seq_len block_size sliding_window zero_expert_num index_topk "
    "local_attention o_lora_rank",
    2: "num_key_value_heads num_kv_heads kv_n_heads num_experts_per_tok moe_topk moe_k moe_top_k "
    "linear_num_key_heads swa_num_key_value_heads hc_sinkhorn_iters mamba_num_heads "
    "mamba_n_heads o_groups index_block_size index_topk_blocks num_hashes",
    # With fewer heads an indexer gives several tokens the score 0, and which of them are taken depends on the padding.
    8: "index_n_heads head_dim d_kv d_head dim_head attention_head_size attention_head_dim qk_rope_head_dim "
    "qk_nope_head_dim v_head_dim q_lora_rank kv_lora_rank kv_channels linear_head_dim linear_key_head_dim "
    "linear_value_head_dim index_head_dim swa_head_dim state_size mamba_d_state ssm_state_size "
    "mamba_d_head mamba_head_dim rotary_dim laurel_rank hidden_size_per_layer_input chunk_size "
    "mamba_chunk_size adapter_rank conf_attention_chunk_size gated_norm_rank hc_lowrank num_latents",
    1: "n_group topk_group",
    128: "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions context_length "
    "position_bias_max_distance",
    VOCABULARY: "vocab_size vocab_size_per_layer_input decoder_vocab_size audio_vocab_size pronunciation_vocab_size "
    "shape_vocab_size entity_vocab_size",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
_LAYER_COUNTS = (
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
    "num_encoder_layers num_blocks depth num_self_attends_per_block"
).split()
_MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8}
_DOTS_3 = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 8, "swa_kv_lora_rank": 8}
_DOTS_3 |= {"swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8}
SPECIAL: dict[str, dict[str, Any]] = {  # by the config's class
    "BambaConfig": {**_MAMBA_2, "attn_layer_indices": [1]},
    "BltConfig": {"use_cache": False, "encoder_hash_byte_group_vocab": 100},
    "CanineConfig": {"downsampling_rate": 2, "upsampling_kernel_size": 2},
    "CohereCompassTextConfig": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "DebertaConfig": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DebertaV2Config": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4},
    "DbrxConfig": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "DeepseekV2Config": {"num_experts_per_tok": 2},
    "Dots1Config": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "Dots3NoteTextConfig": _DOTS_3,
    "EsmConfig": {"vocab_size": VOCABULARY},
    "EsmcConfig": {"num_key_value_heads": 4},
    "FunnelConfig": {"block_sizes": [1, 1], "num_decoder_layers": 1},
    "Gemma3nTextConfig": {"num_kv_shared_layers": 0, "intermediate_size": 48},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},
    "GraniteMoeHybridConfig": {**_MAMBA_2, "layer_types": ["linear_attention", "full_attention"]},
    "JambaConfig": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "LayoutLMv3Config": {"coordinate_size": 6, "shape_size": 4},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "LiltConfig": {"hidden_size": 48, "num_attention_heads": 2},
    "Mamba2Config": {"num_heads": 8},
    "MobileBertConfig": {"intra_bottleneck_size": 32},
    "MusicgenDecoderConfig": {"num_codebooks": 1},
    "MusicgenMelodyDecoderConfig": {"num_codebooks": 1},
    "NemotronHConfig": {"mamba_num_heads": 8, "n_groups": 2},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "RecurrentGemmaConfig": {"num_hidden_layers": 3},
    "ReformerConfig": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "num_buckets": 2,
        "hash_seed": 0,
    },
    "T5Config": {"decoder_start_token_id": 0},
    "xLSTMConfig": {"hidden_size": 128, "embedding_dim": 128, "mode": "train", "chunk_size": 1},
    "XmodConfig": {"default_language": "en_XX"},
    "ZambaConfig": {
        "attention_hidden_size": None,
        "attention_head_dim": None,
        "layers_block_type": None,
        "num_hidden_layers": 6,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "Zamba2Config": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_key_value_heads": 4,
        "n_mamba_heads": 8,
    },
}
_NEEDED = {"head_dim": 8, "num_key_value_heads": 4}  # where the default is none and the model cannot be without
# What is missing of a class that cannot be made or trained here.
MISSING = {
    "Gemma3nForConditionalGeneration": "needs the library timm",
    "Gemma4AssistantForCausalLM": "reads the keys and values of another model",
    "Gemma4UnifiedAssistantForCausalLM": "reads the keys and values of another model",
    "GitForCausalLM": "has a loss for text that follows an image alone",
    "LayoutLMv2ForSequenceClassification": "needs the library detectron2",
    "MusicgenForCausalLM": "takes audio codes for labels",
    "MusicgenMelodyForCausalLM": "takes audio codes for labels",
    "xLSTMForCausalLM": "changes in place what its own backward pass needs",
}


def classes() -> list[tuple[str, str]]:
    """(task, name of the class) of every class, each once."""
    causal = dict.fromkeys(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    classifiers = dict.fromkeys(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())
    return [(CAUSAL_LM, name) for name in causal] + [(CLASSIFIER, name) for name in classifiers]


def small_config(config_class: Any, changes: Mapping[str, Any]) -> Any:
    """A config with every size that its name tells made small.

    Args:
        config_class: class of the config.
        changes (`Mapping[str, Any]`): fields to set otherwise; those of a config inside it under its name.
    """
    changes = dict(changes)
    default = config_class()
    # Only what it declares, some of it under other names in its dict: the rest it works out of that.
    listed = default.to_dict()
    names = [field.name for field in dataclasses.fields(config_class)]
    fields = {name: listed[name] if name in listed else getattr(default, name, None) for name in names}
    parts = getattr(config_class, "sub_configs", {})
    layers = max([LAYERS, *(len(_kinds(value)) for value in fields.values() if isinstance(value, list))])
    small: dict[str, Any] = {}
    latent = fields.get("kv_lora_rank") is not None  # of such attention every head has its own keys
    for name, value in fields.items():
        if name in parts:
            part = getattr(default, name)
            if part is not None:
                small[name] = small_config(type(part), changes.pop(name, {}))
        elif isinstance(value, list) and name in ("layer_types", "mlp_layer_types", "layers_block_type"):
            kinds = _kinds(value)
            small[name] = [kinds[i % len(kinds)] for i in range(layers)]
        elif name in _LAYER_COUNTS and isinstance(value, int):
            small[name] = min(value, layers)
        elif name in _NEEDED and (value is None or (latent and name == "num_key_value_heads")):
            small[name] = _NEEDED[name]
        elif name in SIZES and type(value) is int and value > SIZES[name]:
            small[name] = SIZES[name]
        elif "drop" in name and isinstance(value, float):
            small[name] = 0.0
        elif name.endswith(("token_id", "token_index")) and type(value) is int and value >= VOCABULARY:
            small[name] = VOCABULARY - 1 - len(small) % 20
    small.update({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END})
    if "initializer_range" in fields:
        small["initializer_range"] = 0.2  # weights of a trained size: every layer then has a gradient to tell by
    return config_class(**{**small, **changes})


def small_model(name: str) -> Any:
    """A model of the class of that name in transformers, in evaluation mode, drawn at random with a fixed seed."""
    model_class = getattr(transformers, name)
    config = small_config(model_class.config_class, SPECIAL.get(model_class.config_class.__name__, {}))
    config.num_labels = LABELS
    torch.manual_seed(0)
    model = model_class(config)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return model.float().eval()


def _kinds(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))

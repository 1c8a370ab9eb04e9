"""Configurations of tiny models, one for each kind of layer in today's models.

They are narrow, but have the widths that select kernels: heads of 64 and 128 run the fused attention of Metal and CUDA,
and rows of multiples of 64 can be quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NUM_LAYERS = 6
# Two cuts, so that one stage has neighbours on both sides.
CUTS = (2, 4)
VOCAB_SIZE = 256
# Shorter than the longer prompt of a comparison, so that windows are exceeded.
_WINDOW = 16

_DENSE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}

# The config.json of each family, by its usual name.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_DENSE, "model_type": "llama"},
    "qwen3": {**_DENSE, "model_type": "qwen3", "head_dim": 128, "tie_word_embeddings": True},
    # Windows, with every third layer over all positions.
    "gemma3": {
        **_DENSE,
        "model_type": "gemma3_text",
        "sliding_window": _WINDOW,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 64,
        "rope_local_base_freq": 10000.0,
    },
    # Experts in every other layer.
    "qwen3-moe": {
        **_DENSE,
        **_EXPERTS,
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 2,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    },
    # Experts, windows, and sinks of attention.
    "gpt-oss": {
        **_DENSE,
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 256,
        "sliding_window": _WINDOW,
        "rope_scaling": None,
        "layer_types": ["sliding_attention", "full_attention"] * (NUM_LAYERS // 2),
    },
    # Latent attention, groups of experts, YaRN.
    "deepseek-v3": {
        **_DENSE,
        "model_type": "deepseek_v3",
        "num_key_value_heads": 2,
        "moe_intermediate_size": 128,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 64,
        "q_lora_rank": 64,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 64,
        "v_head_dim": 64,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "n_group": 2,
        "topk_group": 1,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 2,
        "attention_bias": False,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
        },
    },
    # A state-space model beside attention in each layer.
    "falcon-h1": {
        **_DENSE,
        "model_type": "falcon_h1",
        "attention_bias": False,
        "attention_in_multiplier": 1.0,
        "attention_out_multiplier": 0.9375,
        "embedding_multiplier": 5.656854249492381,
        "initializer_range": 0.02,
        "key_multiplier": 0.390625,
        "lm_head_multiplier": 0.0390625,
        "mamba_chunk_size": 128,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_head": 64,
        "mamba_d_ssm": 128,
        "mamba_d_state": 64,
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "mamba_n_heads": 2,
        "mamba_norm_before_gate": False,
        "mamba_proj_bias": False,
        "mamba_rms_norm": False,
        "mamba_use_mlp": True,
        "mlp_bias": False,
        "mlp_expansion_factor": 8,
        "mlp_multipliers": [0.8838834764831844, 0.5859375],
        "projectors_bias": False,
        "rope_scaling": None,
        "rope_traditional": False,
        "ssm_in_multiplier": 1.25,
        "ssm_multipliers": [0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738],
        "ssm_out_multiplier": 0.23570226039551587,
    },
    # Gated delta rule in two layers of three, experts in all.
    "qwen3-next": {
        **_DENSE,
        **_EXPERTS,
        "model_type": "qwen3_next",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "full_attention_interval": 3,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 64,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_value_head_dim": 64,
        "partial_rotary_factor": 0.25,
        "shared_expert_intermediate_size": 128,
    },
    # Short convolutions, with attention in every third layer.
    "lfm2": {
        "model_type": "lfm2",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 128,
        "block_ff_dim": 256,
        "block_multiple_of": 64,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
        "full_attn_idxs": [2, 5],
        "rope_theta": 10000.0,
    },
    # A recurrent state without attention.
    "rwkv7": {
        "model_type": "rwkv7",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 256,
        "norm_eps": 1e-5,
        "head_dim": 64,
        "num_hidden_layers": NUM_LAYERS,
        "a_low_rank_dim": 64,
        "v_low_rank_dim": 64,
        "gate_low_rank_dim": 64,
        "decay_low_rank_dim": 64,
    },
}

"""What fields of config.json mean: which ones change a decoder's numbers, and at which values a module already is.

Everything here was read in the source of mlx-lm 0.32.2 or transformers 5.24; `config_fields.py` makes the table of it,
and stops at a field of transformers' classes that stands in none of these lists.
"""

from __future__ import annotations

from typing import Any

# Read while a model is trained, or to choose kernels, outputs and ids; or a limit that is checked and computes nothing.
_NO_NUMBERS = """
    attention_dropout attn_pdrop embd_pdrop emb_pdrop resid_pdrop residual_dropout hidden_dropout embedding_dropout
    router_aux_loss_coef output_router_logits router_jitter_noise input_jitter_noise summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj pad_token_id use_cache return_dict
    output_attentions output_hidden_states max_position_embeddings max_seq_len num_nextn_predict_layers
    num_logits_to_keep add_cross_attention use_associative_scan use_mamba_kernels use_mambapy chunk_size
    mamba_chunk_size dtype time_step_min time_step_max time_step_floor time_step_init_scheme time_step_scale
    linear_a_log_max linear_a_log_min linear_dt_init_floor linear_dt_max linear_dt_min residual_in_fp32
    reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32 per_layer_config vocab_size
    block_size
"""
NO_NUMBERS = frozenset(_NO_NUMBERS.split())
# Another value is other tensors, whose names or shapes the check of a checkpoint against its module refuses.
_OTHER_TENSORS = """
    num_key_value_heads head_dim intermediate_size n_inner mlp_layer_types linear_conv_kernel_dim linear_head_dim
    linear_num_heads mamba_expand expand decoder_sparse_step mlp_only_layers num_local_experts moe_layers
    no_rope_layers q_lora_rank qk_head_dim v_head_dim hidden_size num_attention_heads num_hidden_layers conv1d_width
    indexer_types lru_width qk_layernorm sliding_window_pattern kda_lower_bound kda_safe_gate
"""
OTHER_TENSORS = frozenset(_OTHER_TENSORS.split())
# Handled by name: the rotary embedding, and kinds of attention.
HANDLED = frozenset(("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "use_sliding_window"))

SILU = ["silu", "swish", "swiglu"]
TANH_GELU = ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"]
GELU = ["gelu", "gelu_python"]
RELU2 = ["relu2", "relu_squared"]
ACTIVATIONS = {"silu": SILU, "gelu_new": TANH_GELU, "gelu_pytorch_tanh": TANH_GELU, "gelu": GELU, "relu2": RELU2}
ACTIVATION_FIELDS = ("hidden_act", "hidden_activation", "activation_function", "mamba_hidden_act", "mlp_hidden_act")
# The one GELU is computed where publishers name the other.
BOTH_GELUS = ("gemma", "gpt_neox", "gpt_bigcode", "starcoder2")
# Activations of modules that transformers has no class for; those not here compute SiLU.
OWN_ACTIVATIONS: dict[str, list[str]] = {
    "phixtral": TANH_GELU,
    "phi3small": ["gegelu"],
    "rwkv7": [*RELU2, "sqrelu"],
    "muse_spark": SILU,
}

# For every field: what it is, in a phrase that ends "... of the published model", and the values at which nothing
# changes where a module does not read it. None (null) never changes anything.
MEANINGS = {
    "hidden_act": "activation of the feed-forward layers",
    "hidden_activation": "activation of the feed-forward layers",
    "activation_function": "activation of the feed-forward layers",
    "mamba_hidden_act": "activation of the state-space layers",
    "mlp_hidden_act": "activation of the feed-forward layers",
    "tie_word_embeddings": "whether the head is the embedding",
    "attention_bias": "biases of the attention, which are tensors this module does not have or always has",
    "mlp_bias": "biases of the feed-forward layers, which are tensors this module does not have",
    "use_bias": "biases, which are tensors this module does not have or always has",
    "qkv_bias": "biases of the attention, which this module always has",
    "lm_head_bias": "bias of the head, which this module always has",
    "layer_types": "kind of attention of each layer",
    "sliding_window": "window of the attention",
    "attention_chunk_size": "chunks of the attention",
    "use_bidirectional_attention": "attention that looks ahead",
    "rope_interleave": "pairs of dimensions that are rotated together",
    "final_logit_softcapping": "cap of the logits",
    "attn_logit_softcapping": "cap of the attention's scores",
    "logit_scale": "scale of the logits",
    "logits_scaling": "scale of the logits",
    "embedding_multiplier": "scale of the embeddings",
    "residual_multiplier": "scale of each layer's output",
    "scale_emb": "scale of the embeddings",
    "clip_qkv": "limit of queries, keys and values",
    "swiglu_limit": "limit inside the experts",
    "swiglu_alpha": "slope of the experts' activation",
    "scoring_func": "how the router scores experts",
    "norm_topk_prob": "whether the chosen experts' weights are made to sum to one",
    "routed_scaling_factor": "scale of the experts' output",
    "moe_norm_min": "smallest sum of the experts' weights",
    "scale_attn_weights": "scale of the attention's scores",
    "scale_attn_by_inverse_layer_idx": "scale of the attention's scores in each layer",
    "attn_temperature_tuning": "scale of queries at late positions",
    "attn_scale": "scale of queries at late positions",
    "floor_scale": "position at which queries are scaled",
    "time_step_limit": "limits of the state-space layers' steps",
    "rms_norm_eps": "epsilon of the norms",
    "layer_norm_epsilon": "epsilon of the norms",
    "mla_use_nope": "attention without a rotary embedding",
    "query_pre_attn_scalar": "scale of the attention's scores",
    "full_attn_alpha_factor": "scale of the residual",
    "full_attn_beta_factor": "scale of the residual",
    "linear_attn_alpha_factor": "scale of the residual",
    "linear_attn_beta_factor": "scale of the residual",
    "mlp_alpha_factor": "scale of the residual",
    "mlp_beta_factor": "scale of the residual",
    "num_experts_per_tok": "experts of each token",
    "moe_renormalize": "whether the chosen experts' weights are made to sum to one",
    "attention_window_size": "window of the attention",
    "attention_method": "kind of the attention",
    "ffn_config.ffn_act_fn": "activation of the feed-forward layers",
    "ffn_with_glu": "gates of the feed-forward layers",
    "mamba_use_mlp": "feed-forward layers after state-space layers",
    "norm_softmax": "how a softmax is normalised",
    "residual_gate_temperature": "temperature of the residual's gates",
    "use_rmsnorm": "kind of the norms",
}

# Fields with one meaning wherever they stand, held against every module that does not read them.
EVERYWHERE: dict[str, list[Any]] = {
    "final_logit_softcapping": [],
    "attn_logit_softcapping": [],
    "logit_scale": [1.0],
    "logits_scaling": [1.0],
    "embedding_multiplier": [1.0],
    "residual_multiplier": [1.0],
    "scale_emb": [1.0],
    "clip_qkv": [],
    "swiglu_limit": [],
    "use_bidirectional_attention": [False],
    "scale_attn_by_inverse_layer_idx": [False],
}

# What a module computes, where that is not transformers' default or there is no such default.
_SIGMOID = ["sigmoid"]
OWN: dict[str, dict[str, list[Any] | None]] = {
    "bailing_moe": {"norm_softmax": [False]},
    "bailing_moe_linear": {"norm_softmax": [False], "use_rmsnorm": [True]},
    "dbrx": {"ffn_config.ffn_act_fn": [{"name": "silu"}]},
    "deepseek": {"scoring_func": ["softmax"], "norm_topk_prob": [False], "routed_scaling_factor": [1.0]},
    "deepseek_v2": {"scoring_func": ["softmax"], "norm_topk_prob": [False]},
    "deepseek_v3": {"scoring_func": _SIGMOID},
    "deepseek_v32": {"scoring_func": _SIGMOID},
    "dots1": {"scoring_func": ["noaux", "sigmoid"]},
    "ernie4_5_moe": {"moe_norm_min": [1e-12]},
    "exaone": {"activation_function": SILU},
    "exaone_moe": {"scoring_func": _SIGMOID},
    "falcon_h1": {"time_step_limit": [[0.0, float("inf")]], "mamba_use_mlp": [True]},
    "gemma3": {"tie_word_embeddings": None},
    "gemma3_text": {"tie_word_embeddings": None},
    "gemma4": {"use_bidirectional_attention": [False, "vision"]},
    "gemma4_text": {"use_bidirectional_attention": [False, "vision"]},
    "glm4_moe": {"scoring_func": _SIGMOID},
    "glm4_moe_lite": {"scoring_func": _SIGMOID},
    "glm_moe_dsa": {"scoring_func": _SIGMOID},
    "gpt_oss": {"swiglu_limit": [7.0], "swiglu_alpha": [1.702]},
    "hunyuan": {"routed_scaling_factor": [1.0]},
    "internlm3": {"hidden_act": SILU},
    "kimi_k25": {"scoring_func": _SIGMOID},
    "kimi_linear": {"mla_use_nope": [True], "scoring_func": None},
    "kimi_vl": {"scoring_func": _SIGMOID},
    "llama4": {"tie_word_embeddings": [False]},
    # The rotary embedding's positions scale queries only past `floor_scale`.
    "llama4_text": {
        "attn_temperature_tuning": [False],
        "attn_scale": None,
        "floor_scale": None,
        "num_experts_per_tok": None,
    },
    "longcat_flash": {"attention_method": ["MLA"]},
    "mamba": {"layer_norm_epsilon": [1e-5]},
    "mimo_v2_flash": {"scoring_func": _SIGMOID, "rms_norm_eps": None, "sliding_window": None},
    # transformers' own "minimax" is another model, which scales its residuals.
    "minimax": {
        "scoring_func": _SIGMOID,
        **{
            f"{layers}_{factor}_factor": [1]
            for layers in ("full_attn", "linear_attn", "mlp")
            for factor in ("alpha", "beta")
        },
    },
    "nanochat": {"final_logit_softcapping": [15.0], "rms_norm_eps": [1e-5, 1e-6]},
    "nemotron_h": {"use_bias": [False]},
    "olmo": {"tie_word_embeddings": None},
    "openelm": {"ffn_with_glu": [True]},
    "phimoe": {"lm_head_bias": [True], "attention_bias": [True]},
    "recurrent_gemma": {"tie_word_embeddings": None},
    "solar_open": {"scoring_func": _SIGMOID},
    "step3p5": {"query_pre_attn_scalar": None, "swiglu_limit": None},
    "deepseek_v41": {"tie_word_embeddings": [False]},
}

# Where layers' kinds come from, for modules that do not read `layer_types`: the field, and what holds without it. A
# number says that one in so many layers is full, a text has G for those, a list has 0 for them or their numbers from 1.
PATTERNS: dict[str, tuple[str, int | None]] = {
    "exaone4": ("sliding_window_pattern", 1),
    "kimi_linear": ("linear_attn_config.full_attn_layers", None),
    "llama4": ("", 4),
    "mimo_v2_flash": ("hybrid_layer_pattern", None),
    "gemma3": ("sliding_window_pattern", 6),
    "gemma3_text": ("sliding_window_pattern", 6),
    "cohere2": ("sliding_window_pattern", 4),
    "qwen3_next": ("full_attention_interval", 4),
    "qwen3_5": ("full_attention_interval", 4),
    "qwen3_5_moe": ("full_attention_interval", 4),
    "bailing_hybrid": ("layer_group_size", 6),
}
# Fields of these modules that say the same in another name, which alone is read.
RENAMED: dict[str, dict[str, str]] = {
    "ernie4_5_moe": {"num_experts_per_tok": "moe_k"},
    "kimi_linear": {"num_experts_per_tok": "num_experts_per_token", "norm_topk_prob": "moe_renormalize"},
    "longcat_flash": {"num_experts_per_tok": "moe_topk"},
    "recurrent_gemma": {"sliding_window": "attention_window_size"},
    "mimo_v2_flash": {"rms_norm_eps": "layernorm_epsilon"},
}

# Rotary embeddings. Where a module has its base, and the share of dimensions that rotate, by another name.
THETA_NAMES = {
    "dbrx": "attn_config.rope_theta",
    "gpt_neox": "rotary_emb_base",
    "openelm": "rope_freq_constant",
    "phi3small": "rope_embedding_base",
}
PARTIAL_NAMES = {"gpt_neox": "rotary_pct"}
# Number of dimensions that rotate, where a module reads that and not the share.
DIMS_NAMES = {"minimax": "rotary_dim"}
# A second base, for layers whose attention has a window.
LOCAL_THETAS = {
    "gear": "rope_local_base_freq",
    "gemma3": "rope_local_base_freq",
    "gemma3_text": "rope_local_base_freq",
    "gemma3n": "rope_local_base_freq",
    "mimo_v2_flash": "swa_rope_theta",
    "olmo3": "rope_theta",
    "plamo3": "rope_local_theta",
}
FIXED_THETAS = {"gptj": 10000.0, "phixtral": 10000.0, "plamo2": 10000.0, "qwen": 10000.0, "recurrent_gemma": 10000.0}
FIXED_PARTIALS = {"recurrent_gemma": [0.5], "gptj": [], "phixtral": [], "phi3small": [1.0]}
# Modules that take one kind of scaling for granted, whatever name stands there.
ONLY_TYPES = {
    "deepseek_v2": ["yarn"],
    "deepseek_v41": ["yarn"],
    "hunyuan": ["dynamic"],
    "hunyuan_v1_dense": ["dynamic"],
    "minicpm3": ["longrope", "su"],
    "phi3": ["longrope", "su"],
    "phimoe": ["longrope", "su"],
}
# They take `rope_parameters` whole, but need a key in it that the probes' do not have.
WHOLE_TYPES = ("ministral3", "mistral3", "mistral4")
# Rotary embeddings by layer type, read from `rope_parameters` as transformers writes it.
NESTED_NATIVE = ("gemma4", "gemma4_text", "laguna", "mellum", "spark2_5")
# Every published checkpoint has these, and mlx-lm's module was written for them: said, not refused.
NOTED = {"gpt_oss": ["truncate"]}
# `short_factor` is never read by mlx-lm: texts shorter than the original context are computed with `long_factor`.

# The class of transformers that describes a module's model, where its name is another.
CLASSES = {
    "lfm2-vl": "lfm2_vl",
    "pixtral": "mistral",
    "minimax": "minimax_m2",
    "kimi_vl": "deepseek_v3",
    "longcat_flash_ngram": "longcat_flash",
    "prism_hadamard_qwen35": "qwen3_5",
}
# Text models inside others, by the model type they name.
TEXT_ENTRIES = {
    "mistral3": {"ministral3": "ministral3", "mistral4": "mistral4", "": "mistral"},
    "pixtral": {"": "mistral"},
}
# Model types that mlx-lm runs by another type's module, and that have fields of their own.
OWN_TYPES = {"mistral": "llama", "falcon_mamba": "mamba", "qwen2_5_vl": "qwen2_vl"}

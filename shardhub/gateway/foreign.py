"""Fields of other servers' APIs that this gateway does not support: refused where they would change an answer.

A field with a neutral value, at which it has no effect, is accepted. So is a field that serves bookkeeping or tunes the
server. A field that is in neither table is ignored and named in the answer's warning header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shardhub.gateway.refusals import Refusal

_Neutral = Callable[[Any], bool]


def _is(*values: Any) -> _Neutral:
    """A predicate for neutral values, at which a field has no effect. Text may stand for a number."""
    texts = {str(value) for value in values}
    return lambda value: value in values or (isinstance(value, str) and value in texts)


_is_off = _is(0, False, "", "false", "0.0")
_is_empty: _Neutral = lambda value: not value  # noqa: E731
_is_one = _is(1, "1.0")
_SAMPLER = "this gateway samples by temperature, top_k, top_p, min_p and the penalties only"
_AUDIO = "answers are text only"

# By name: which values are neutral, and why others are refused.
_REFUSED: Mapping[str, tuple[_Neutral, str]] = {
    # Samplers of llama.cpp, text-generation-webui and their clients.
    "typical_p": (_is_one, _SAMPLER),
    "typical": (_is_one, _SAMPLER),
    "tfs_z": (_is_one, _SAMPLER),
    "tfs": (_is_one, _SAMPLER),
    "top_a": (_is_off, _SAMPLER),
    "top_n_sigma": (_is(0, -1, "0.0", "-1.0"), _SAMPLER),
    "nsigma": (_is(0, -1, "0.0", "-1.0"), _SAMPLER),
    "mirostat": (_is_off, _SAMPLER),
    "mirostat_mode": (_is_off, _SAMPLER),
    "dry_multiplier": (_is_off, _SAMPLER),
    "xtc_probability": (_is_off, _SAMPLER),
    "dynatemp_range": (_is_off, _SAMPLER),
    "dynamic_temperature": (_is_off, _SAMPLER),
    "smoothing_factor": (_is_off, _SAMPLER),
    "epsilon_cutoff": (_is_off, _SAMPLER),
    "eta_cutoff": (_is_off, _SAMPLER),
    "adaptive_target": (_is(-1, "-1.0"), _SAMPLER),
    "penalty_alpha": (_is_off, _SAMPLER),
    "no_repeat_ngram_size": (_is_off, _SAMPLER),
    "encoder_repetition_penalty": (_is_one, _SAMPLER),
    "guidance_scale": (_is_one, _SAMPLER),
    "negative_prompt": (_is_empty, _SAMPLER),
    "logits_processors": (_is_empty, "code sent by clients is never run"),
    "use_beam_search": (_is_off, "this gateway does not do beam search"),
    "num_beams": (_is_one, "this gateway does not do beam search"),
    # Formats of an answer.
    "grammar": (_is_empty, "grammars are given as guided_json, guided_regex or guided_choice"),
    "guided_grammar": (_is_empty, "grammars are given as guided_json, guided_regex or guided_choice"),
    "ebnf": (_is_empty, "grammars are given as guided_json, guided_regex or guided_choice"),
    "structural_tag": (_is_empty, "grammars are given as guided_json, guided_regex or guided_choice"),
    "prompt_logprobs": (_is_off, "use /v1/completions with echo and logprobs to score a prompt"),
    "audio": (_is_empty, _AUDIO),
    # Sources of an answer.
    "web_search_options": (lambda value: False, "this gateway does not search the web"),
    "chat_template": (_is_empty, "templates sent by clients are never run"),
    "prompt_embeds": (_is_empty, "prompts are text or token ids"),
    "lora_request": (_is_empty, "this gateway does not load adapters"),
    "lora": (_is_empty, "this gateway does not load adapters"),
    "adapters": (_is_empty, "this gateway does not load adapters"),
    "image_data": (_is_empty, "prompts are text or token ids"),
    "multi_modal_data": (_is_empty, "prompts are text or token ids"),
}
# Parameters of features that another field turns on, which is refused; bookkeeping; tuning of the server.
_SILENT = frozenset(
    """
    mirostat_tau mirostat_eta dry_base dry_allowed_length dry_penalty_last_n dry_range dry_sequence_breakers
    xtc_threshold dynatemp_exponent dynatemp_low dynatemp_high smoothing_curve length_penalty early_stopping
    top_n_sigma_min sampler_seed spaces_between_special_tokens cache_prompt id_slot slot_id n_keep n_discard
    t_max_predict_ms priority request_id guided_decoding_backend cache_salt user_id prompt_cache_retention
    num_batch num_gpu main_gpu low_vram f16_kv vocab_only use_mmap use_mlock num_thread numa num_keep
    logits_all embedding_only penalize_newline draft_num_predict
    """.split()  # noqa: SIM905 - one a line would hide the rest
)


def check_foreign(fields: Mapping[str, Any] | None, where: str = "") -> None:
    """Refuse unsupported fields that would change the answer.

    Args:
        fields: The fields of a request that its model does not know.
        where: The path of the object that holds them, ending with a dot.

    Raises:
        Refusal: A field would change the answer.
    """
    for name, value in (fields or {}).items():
        reason = refused_for(name, value)
        if reason is None:
            continue
        raise Refusal(
            400, f"{where}{name} is not supported: {reason}.", param=f"{where}{name}", code="unsupported_value"
        )


def refused_for(name: str, value: Any) -> str | None:
    """Why a field is refused; None if the field is not known or its value is neutral."""
    is_neutral, reason = _REFUSED.get(name, (None, ""))
    return None if value is None or is_neutral is None or is_neutral(value) else reason


def is_ignored(name: str, value: Any) -> bool:
    """Whether an unknown field is named in the warning header: not if it is null or has no effect."""
    is_off = value is None or (name == "strict" and value is False)
    return not is_off and name not in _REFUSED and name not in _SILENT

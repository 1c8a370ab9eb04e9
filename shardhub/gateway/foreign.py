"""Fields of other servers' APIs that this gateway cannot do: refused where they would change an answer.

A field that has the value at which it does nothing is taken. One that only keeps books, or only tells a machine how to
work, is taken, too. Whatever stands in no table here is ignored and named in the answer's warning header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shardhub.gateway.refusals import Refusal

_Neutral = Callable[[Any], bool]


def _is(*values: Any) -> _Neutral:
    """Whether a value is one of those at which a field does nothing; text may stand for a number."""
    texts = {str(value) for value in values}
    return lambda value: value in values or (isinstance(value, str) and value in texts)


_is_off = _is(0, False, "", "false", "0.0")
_is_empty: _Neutral = lambda value: not value  # noqa: E731
_is_one = _is(1, "1.0")
_SAMPLER = "this sampler is not one of those here (temperature, top_k, top_p, min_p and the penalties)"
_AUDIO = "answers are text only"

# By name: at which values it does nothing, and why others cannot be done.
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
    "logits_processors": (_is_empty, "code of a client is not run here"),
    "use_beam_search": (_is_off, "beams are not searched here"),
    "num_beams": (_is_one, "beams are not searched here"),
    # Forms of an answer.
    "grammar": (_is_empty, "grammars are given as guided_json, guided_regex or guided_choice"),
    "guided_grammar": (_is_empty, "grammars are given as guided_json, guided_regex or guided_choice"),
    "ebnf": (_is_empty, "grammars are given as guided_json, guided_regex or guided_choice"),
    "structural_tag": (_is_empty, "grammars are given as guided_json, guided_regex or guided_choice"),
    "prompt_logprobs": (_is_off, "ask /v1/completions with echo and logprobs for how likely a prompt is"),
    "audio": (_is_empty, _AUDIO),
    # What an answer would be made from.
    "web_search_options": (lambda value: False, "the web is not searched here"),
    "chat_template": (_is_empty, "a client's own template is not run here"),
    "prompt_embeds": (_is_empty, "prompts are text or token ids"),
    "lora_request": (_is_empty, "adapters are not loaded here"),
    "lora": (_is_empty, "adapters are not loaded here"),
    "adapters": (_is_empty, "adapters are not loaded here"),
    "image_data": (_is_empty, "prompts are text or token ids"),
    "multi_modal_data": (_is_empty, "prompts are text or token ids"),
}
# What these tune is refused, or does nothing, by the field that turns it on; or they keep books, or tune the machine.
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
    """Refuse fields that would change the answer and cannot be done.

    Args:
        fields: Those a request has beyond the known ones.
        where: What they are part of, with a dot.

    Raises:
        Refusal: One of them would change the answer.
    """
    for name, value in (fields or {}).items():
        reason = refused_for(name, value)
        if reason is None:
            continue
        raise Refusal(400, f"{where}{name} cannot be done: {reason}.", param=f"{where}{name}", code="unsupported_value")


def refused_for(name: str, value: Any) -> str | None:
    """Why a field that would change the answer cannot be done, or None where it would not, or is not known."""
    is_neutral, reason = _REFUSED.get(name, (None, ""))
    return None if value is None or is_neutral is None or is_neutral(value) else reason


def is_ignored(name: str, value: Any) -> bool:
    """Whether a field that is not known is worth a word to the client: null, and what changes nothing, is not."""
    is_off = value is None or (name == "strict" and value is False)
    return not is_off and name not in _REFUSED and name not in _SILENT

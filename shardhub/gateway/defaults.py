"""Sampling parameters from a request and the defaults that the model's publisher recommends."""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardhub.errors import FormatError, UsageError
from shardhub.gateway.refusals import Refusal
from shardhub.gateway.schema import Generation, Sampling
from shardhub.parameters import MAX_LOGIT_BIAS, MAX_SEED, REPETITION_CONTEXT, SamplingParameters
from shardhub.regular_files import read_file
from shardhub.text.tokenizer_files import MAX_CONFIG_BYTES

_FILE = "generation_config.json"
_MIN_TEMPERATURE = 0.01
# Context size of a repetition penalty: larger than any context.
_WHOLE_CONTEXT = 1 << 24
# Clients of vLLM, llama.cpp and Ollama send -1 for a random seed.
_ANY_SEED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Sampling defaults: greedy, unless the model's generation_config.json says otherwise."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def read_defaults(folder: Path) -> Defaults:
    """Read the defaults from a pipeline's folder. Entries that are out of range are left out.

    Raises:
        FormatError: The file is not a JSON object.
    """
    path = folder / _FILE
    if not path.is_file():
        return Defaults()
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise FormatError(f"{path} is too large.")
        settings = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON.", why=str(error)) from error
    if not isinstance(settings, dict):
        raise FormatError(f"{path} is not a JSON object.")
    values: dict[str, Any] = {"temperature": 1.0} if settings.get("do_sample") is True else {}
    for name in Defaults.__slots__:
        value = settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            values[name] = int(value) if name == "top_k" else float(value)
            try:
                SamplingParameters(**{name: values[name]})
            except UsageError:
                del values[name]
    if settings.get("do_sample") is False:
        values["temperature"] = 0.0
    return Defaults(**values)


def parameters_of(body: Generation, defaults: Defaults, *, vocab_size: int, top_logprobs: int) -> SamplingParameters:
    """The sampling parameters of a request. A seed is drawn if the request gives none.

    Raises:
        Refusal: A bias is for an id that is not a token, or there are too many biases.
    """
    given = {name: getattr(body, name) for name in Defaults.__slots__}
    values = {name: getattr(defaults, name) if value is None else value for name, value in given.items()}
    if body.repetition_penalty is None and body.repeat_penalty is not None:
        values["repetition_penalty"] = body.repeat_penalty
    values["repetition_context"] = _context_of_penalty(body)
    if values["repetition_context"] == 0:
        values |= {"repetition_penalty": 1.0, "repetition_context": REPETITION_CONTEXT}
    values["top_k"] = max(0, values["top_k"])
    # Only the most likely token is left; division by a temperature near 0 overflows in 16 bits.
    if values["top_p"] == 0 or values["temperature"] < _MIN_TEMPERATURE:
        values |= {"top_p": 1.0, "temperature": 0.0}
    return SamplingParameters(
        **values,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_biases(body.logit_bias or {}, vocab_size),
        seed=secrets.randbelow(MAX_SEED) if body.seed is None or body.seed == _ANY_SEED else body.seed % (MAX_SEED + 1),
        top_logprobs=top_logprobs,
    )


def kept_of_prompt(body: Sampling, max_context: int, *, requested: int | None) -> int | None:
    """Number of ids kept at the end of a prompt, or None for all; -1 keeps what the answer leaves of the context.

    Args:
        requested: Maximum number of tokens of the answer; None if the request gives none.

    Raises:
        Refusal: No id would be kept.
    """
    num = body.truncate_prompt_tokens
    if num == 0:
        raise Refusal(
            400, "truncate_prompt_tokens must not be 0: no prompt would be left.", param="truncate_prompt_tokens"
        )
    # An answer that may fill the context leaves half of it to the prompt, and is then cut to what is left.
    return max_context - min(max(1, requested or 1), max_context // 2) if num == -1 else num


def _context_of_penalty(body: Generation) -> int:
    """Number of recent tokens that the repetition penalty considers; 0 turns it off."""
    size = body.repetition_context_size if body.repeat_last_n is None else body.repeat_last_n
    if size is None:
        return REPETITION_CONTEXT
    return _WHOLE_CONTEXT if size < 0 else size


def _biases(given: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    if len(given) > MAX_LOGIT_BIAS:
        raise Refusal(
            400, f"logit_bias has {len(given)} entries, and the limit is {MAX_LOGIT_BIAS}.", param="logit_bias"
        )
    biases: dict[int, float] = {}
    for text, bias in given.items():
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < vocab_size):
            raise Refusal(400, f"logit_bias: {text[:20]!r} is not a token id.", param="logit_bias")
        if not -100 <= bias <= 100:
            raise Refusal(400, f"logit_bias of {text} must be from -100 to 100.", param="logit_bias")
        biases[int(text)] = bias
    return tuple(sorted(biases.items()))

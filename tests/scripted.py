"""Tiny models that write a given text: the next token is a function of the present one alone.

Every layer's weights are zero, so a hidden state is the one-hot embedding of its token, and row `b` of the head has an
entry for the token that `b` follows. A prompt chooses what is said by its last token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests import tiny

END = "<|end|>"
GO = "<|go|>"
# Rows of matrices are multiples of it, as quantisation would want.
_MULTIPLE = 64
_MIN_PIECE_CHARS = 4
# The letter that stands for several characters of a prompt.
_CONDENSED = "x"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save(
    folder: Path,
    scripts: Mapping[str, str | Sequence[str]],
    *,
    template: str | None = CHATML + "{% if add_generation_prompt %}" + GO + "{% endif %}",
    specials: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    added: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    tokenizer_config: Mapping[str, Any] | None = None,
    chars_per_token: int = 1,
) -> Path:
    """Save a model that writes a script after the token named for the script, and then ends.

    Args:
        scripts: Texts, or the pieces that are to be tokens, by the special token they follow, such as `GO`.
        specials: More special tokens, for the template.
        added: Added tokens that are not special, such as tags the model is trained on.
        config: More of config.json.
        tokenizer_config: More of tokenizer_config.json.
        chars_per_token: How many characters of a prompt become one token, which stands for them all: prompts of coding
            agents have 100,000.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys([*specials, END, *scripts]))
    used: set[str] = set(names) | set(added) | set(_byte_letters().values())
    pieces = {name: list(_pieces(script, used)) for name, script in scripts.items()}
    tokenizer = _tokenizer([piece for script in pieces.values() for piece in script], names, added)
    if chars_per_token > 1:
        pattern = Regex(rf"[^\x00]{{{chars_per_token}}}")
        tokenizer.normalizer = normalizers.Replace(pattern, _CONDENSED)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {name: tokenizer.token_to_id(name) for name in names}
    follows = dict.fromkeys(range(tokenizer.get_vocab_size()), ids[END])
    for name, script in pieces.items():
        said = [ids[name], *(tokenizer.token_to_id(_letters(piece)) for piece in script), ids[END]]
        follows |= dict(pairwise(said))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": template}
    settings = {name: value for name, value in {**settings, **(tokenizer_config or {})}.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    _save_weights(folder, follows, {"eos_token_id": ids[END], **(config or {})})
    return folder


def choosing(template: str, scripts: Mapping[str, Any]) -> str:
    """A template whose prompt ends in the script last named by a conversation, as `next_NAME_end`, or else in `GO`.

    What a tool returns may name the next one, so a session of several turns follows from its first words.

    Args:
        template: What stands before that.
        scripts: By `go(NAME)`.
    """
    names = json.dumps([name.removeprefix("<|go_").removesuffix("|>") for name in scripts if name != GO])
    return (
        template
        + "{%- if add_generation_prompt -%}{%- set chosen = namespace(at=-1, name='"
        + GO
        + "') -%}{%- set everything = messages | tojson -%}{%- for name in "
        + names
        + " -%}{%- set at = everything.rfind('next_' ~ name ~ '_end') -%}{%- if at > chosen.at -%}"
        "{%- set chosen.at = at -%}{%- set chosen.name = '<|go_' ~ name ~ '|>' -%}{%- endif -%}{%- endfor -%}"
        "{{- chosen.name -}}{%- endif -%}"
    )


def go(name: str) -> str:
    """The special token that a script is named for, in `choosing`."""
    return f"<|go_{name}|>"


def _pieces(script: str | Sequence[str], used: set[str]) -> Iterator[str]:
    """Cut a text into pieces that are unique within a model."""
    if not isinstance(script, str):
        for piece in script:
            assert _letters(piece) not in used, f"two tokens would be {piece!r}"
            used.add(_letters(piece))
            yield piece
        return
    cuts: list[str] = []
    start = 0
    while start < len(script):
        stop = start + _MIN_PIECE_CHARS
        while _letters(script[start:stop]) in used and stop < len(script):
            stop += 1
        piece, start = script[start:stop], stop
        # The rest may have been said before: then it goes to the piece before it.
        while _letters(piece) in used:
            assert cuts, f"a script was said before: {script!r}"
            used.remove(_letters(cuts[-1]))
            piece = cuts.pop() + piece
        cuts.append(piece)
        used.add(_letters(piece))
    yield from cuts


def _tokenizer(pieces: Sequence[str], specials: Sequence[str], added: Sequence[str]) -> Tokenizer:
    vocabulary = {letter: number for number, letter in enumerate(_byte_letters().values())}
    for piece in pieces:
        vocabulary.setdefault(_letters(piece), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return tokenizer


def _save_weights(folder: Path, follows: Mapping[int, int], config: Mapping[str, Any]) -> None:
    num_rows = -(-len(follows) // _MULTIPLE) * _MULTIPLE
    settings = {
        "model_type": "llama",
        "vocab_size": num_rows,
        "hidden_size": num_rows,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
        **config,
    }
    model = tiny.build(settings)
    weights = {name: mx.zeros_like(value) for name, value in tree_flatten(model.parameters())}
    weights |= {name: mx.ones_like(value) for name, value in weights.items() if "norm" in name}
    head = np.zeros((num_rows, num_rows), np.float32)
    head[list(follows.values()), list(follows)] = 1.0
    weights |= {"model.embed_tokens.weight": mx.eye(num_rows), "lm_head.weight": mx.array(head)}
    model.load_weights(list(weights.items()))
    tiny.save(model, settings, folder)


def _byte_letters() -> dict[int, str]:
    """The letter that byte-level tokenizers write for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def _letters(text: str) -> str:
    letters = _byte_letters()
    return "".join(letters[byte] for byte in text.encode())

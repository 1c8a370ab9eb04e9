"""The tokenizer of a model's or a pipeline's folder: prompts to token ids, answers to text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shardhub.errors import PromptError
from shardhub.text.detokenizer import (
    SPACE_MARK,
    UNKNOWN,
    ByteDetokenizer,
    Detokenizer,
    LineDetokenizer,
    byte_table,
    bytes_in,
)
from shardhub.text.encoder import Encoder
from shardhub.text.fitter import Fitter
from shardhub.text.panics import panics_as_errors
from shardhub.text.template import ChatTemplate, Ending, Message
from shardhub.text.tokenizer_files import (
    MAX_TOKENIZER_BYTES,
    TOKENIZER_FILE,
    check_growth,
    check_template,
    eos_ids_of,
    load_tokenizer,
    read_json,
)
from shardhub.text.tool_prompt import TOOL_WORDS

# A rendered chat with more characters per position of the context cannot fit, because tokens are shorter.
CHARS_PER_POSITION = 16
DEFAULT_CONTEXT = 131072
# Ids of a continued text to decode again: enough for a character of four tokens.
_CONTEXT_IDS = 4
# Every tokenizer has a word or a letter among its first ids, after special tokens and 256 bytes.
_ANCHORS_TRIED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedChat:
    """A conversation under a model's chat template.

    Attributes:
        ids: The token ids of the whole text.
        opening: The end of the text after the last message: the template's opening of the model's turn, followed by
            the beginning of the answer if the model continues one. It holds none of the user's words.
    """

    ids: list[int]
    opening: str


class Tokenizer:
    """Encodes prompts and decodes answers as mlx_lm does for the same folder.

    Only the folder is read, without network access and without running its code. Only fast (Rust) tokenizers are
    supported.

    Args:
        folder: Holds tokenizer.json, tokenizer_config.json and config.json, and may hold generation_config.json and
            chat_template.jinja.
        context: Maximum number of positions of a session; limits the text that a chat template may render.

    Attributes:
        eos_ids: Token ids that end an answer: the tokenizer's and those of the config files, as in `mlx_lm.load`.
        vocab_size: Number of token ids of the tokenizer; a model may have more rows.

    Raises:
        FormatError: A file is missing, too large or malformed.
        UnsupportedModel: The tokenizer needs code of its own, or is not a fast one.
    """

    def __init__(self, folder: Path, *, context: int = DEFAULT_CONTEXT) -> None:
        content = read_json(folder / TOKENIZER_FILE, max_bytes=MAX_TOKENIZER_BYTES)
        for part in ("normalizer", "decoder"):
            check_growth(content.get(part), where=f"{folder / TOKENIZER_FILE}: {part}")
        self._decoder = content.get("decoder")
        self._hf = load_tokenizer(folder)
        check_template(folder, self._hf.chat_template)
        self.vocab_size: int = len(self._hf)
        self.eos_ids = eos_ids_of(folder, self._hf.eos_token_id)
        self._table = byte_table(self._decoder, self._hf.convert_ids_to_tokens(list(range(self.vocab_size))))
        self._special_ids = frozenset(self._hf.all_special_ids)
        self._max_chat_chars = context * CHARS_PER_POSITION
        self._templates: dict[str, ChatTemplate] = {}
        self._fitters: dict[str, Fitter] = {}
        plain = bool(getattr(self._hf, "split_special_tokens", False))
        self._encoder = Encoder(self.serialized, plain_special_tokens=plain)

    def encode(self, text: str, *, add_special_tokens: bool = True, max_ids: int | None = None) -> list[int]:
        """Encode a text to token ids.

        Args:
            text: Any text; names of special tokens in it become those tokens.
            add_special_tokens: Whether to add the tokens that the tokenizer puts around a text (mostly a first token).
                A text that already begins with that first token does not get a second one, as in mlx_lm.
            max_ids: Limit of ids. A text that certainly exceeds it is refused before all of it is tokenized; a text
                with a few more ids may pass.

        Raises:
            PromptError: The text holds a lone surrogate, or the tokenizer fails or takes too long.
            ContextExceeded: The text has more ids.
        """
        first = self._hf.bos_token
        add = add_special_tokens and (first is None or not text.startswith(first))
        _check_text(text)
        return self._encoder.encode(text, add_special_tokens=add, max_ids=max_ids)

    def detokenizer(self, *, after: Sequence[int] = ()) -> Detokenizer:
        """Make a detokenizer for one answer.

        Args:
            after: Ids of the text that the answer continues. The answer's first space is then kept, and words are
                joined as their tokens require.
        """
        if self._table is None:
            texts = [token for token in after if token not in self._special_ids]
            return LineDetokenizer(self.decode, texts[-_CONTEXT_IDS:])
        return ByteDetokenizer(replace(self._table, trims="none") if after else self._table)

    def text_detokenizer(self) -> Detokenizer:
        """Make a detokenizer for the ids of a whole text. The text equals that of transformers."""
        if self._table is None:
            return LineDetokenizer(self.decode)
        return ByteDetokenizer(replace(self._table, trims="one" if self._table.strips else "none"))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token inside a text; they may be incomplete characters."""
        if self._table is None:
            return self._bytes_in_line(token)
        if token >= len(self._table.pieces):
            return UNKNOWN
        piece = self._table.pieces[token]
        return piece.replace(SPACE_MARK.encode(), b" ") if self._table.space_mark else piece

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of the special tokens, by name: `bos_token`, `eos_token`, ..."""
        return {name: text for name, text in self._hf.special_tokens_map.items() if isinstance(text, str)}

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, the default one if there are several; None if there is none."""
        return self.template_source(with_tools=False)

    def template_source(self, *, with_tools: bool) -> str | None:
        """The chat template for conversations with or without tools. Of several, transformers' choice is used.

        Source: transformers/tokenization_utils_base.py, get_chat_template.
        """
        templates = self._hf.chat_template
        if not isinstance(templates, dict):
            return str(templates) if templates else None
        default = templates.get("default") or next(iter(templates.values()), None)
        return templates.get("tool_use", default) if with_tools else default

    def knows(self, token: str) -> bool:
        """Whether a text is a single token of the vocabulary."""
        return token in self._hf.get_vocab()

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary, or None."""
        number = self._hf.get_vocab().get(token)
        return None if number is None else int(number)

    def serialized(self) -> str:
        """The whole tokenizer, with added tokens, as the JSON of tokenizer.json."""
        return str(self._hf.backend_tokenizer.to_str())

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        ending: Ending = "turn",
        max_ids: int | None = None,
        **variables: Any,
    ) -> RenderedChat:
        """Render a conversation with the model's chat template and encode it.

        For a conversation that the template accepts, the ids equal those of transformers'
        `apply_chat_template(tokenize=True)`. Any other is adapted to the template; see `Fitter`. The other arguments
        are those of `ChatTemplate.render` and `encode`.

        Args:
            ending: Where the prompt ends; see `ChatTemplate.open`.

        Raises:
            PromptError: The model has no template, or the template accepts no form of the messages, or fails.
            ContextExceeded: As `encode`.
        """
        fitter = self._fitter(with_tools=tools is not None)
        opened = fitter.open(messages, ending=ending, tools=tools, variables=variables)
        _check_text(opened.text)
        # The template writes the special tokens itself.
        ids = self._encoder.encode(opened.text, add_special_tokens=False, max_ids=max_ids)
        return RenderedChat(ids=ids, opening=opened.opening)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self._hf.chat_template)

    def start(self) -> None:
        """Start the rendering and encoding processes now, so that the first prompt does not wait for them."""
        self._encoder.start()
        if self.has_chat_template:
            self._template(with_tools=False).start()

    def close(self) -> None:
        """End the rendering and encoding processes."""
        self._encoder.close()
        for template in self._templates.values():
            template.close()

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text, as transformers does.

        Raises:
            PromptError: The tokenizer fails.
        """
        with panics_as_errors("The model's tokenizer cannot decode its tokens."):
            return str(self._hf.decode(ids))

    def _bytes_in_line(self, token: int) -> bytes:
        """The bytes that a token adds to a text, for a decoder that joins tokens to their neighbours."""
        if (added := self._hf.added_tokens_decoder.get(token)) is not None:
            return str(added.content).encode("utf-8", "replace")
        if token >= self.vocab_size:
            return UNKNOWN
        if (own := bytes_in(self._decoder, self._hf.convert_ids_to_tokens(token) or "")) is not None:
            return own
        anchor, shown = self._anchor
        text = self.decode([*anchor, token])
        return (text[len(shown) :] if text.startswith(shown) else self.decode([token])).encode("utf-8", "replace")

    @cached_property
    def _anchor(self) -> tuple[list[int], str]:
        """A token that is a plain word, and its text. A token decoded after it is inside a text."""
        for token in range(min(self.vocab_size, _ANCHORS_TRIED)):
            text = self.decode([token])
            if text.isascii() and text.isalnum() and token not in self._special_ids:
                return [token], text
        return [], ""

    def _template(self, *, with_tools: bool) -> ChatTemplate:
        source = self.template_source(with_tools=with_tools)
        if source is None:
            raise PromptError(
                "The model has no chat template.", hint="Use `raw` to send the prompt as it is: it may be a base model."
            )
        if source not in self._templates:
            self._templates[source] = ChatTemplate(source, max_output_chars=self._max_chat_chars)
        return self._templates[source]

    @property
    def tool_words(self) -> str:
        """The tool prompt for a model whose template leaves out tools; empty if the template writes them."""
        if self.template_source(with_tools=True) is None:
            return ""
        try:
            return "" if self._fitter(with_tools=True).shows_tools() else TOOL_WORDS
        except PromptError:  # a failure is reported when a conversation is rendered
            return ""

    def _fitter(self, *, with_tools: bool) -> Fitter:
        template = self._template(with_tools=with_tools)
        return self._fitters.setdefault(template.source, Fitter(template, self._hf.special_tokens_map))


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError("The prompt contains characters that cannot be encoded.", why=str(error)) from error

"""The process in which untrusted chat templates run: `python -m shardhub.text.template_worker`.

Reads one JSON request per line, `{"template", "variables", "conversations", "max_chars", "mode"}`, and answers each
with one JSON line: `{"text", "opening"}` for the first conversation that can be rendered, or `{"error", "message"}`.
Mode "history" only renders and has no opening; "turn" and "prefix" are described in `shardhub.text.openings`. Mode
"each" is answered with `{"texts"}`: null for each refused conversation, and fewer texts if time ran out. It imports
jinja2 and the standard library only.

Jinja's sandbox restricts code but not its cost (measured: a huge power took 30 s, one format string 2 GB). So the
process limits its memory, CPU time and open files, and `shardhub.text.sandbox` kills it if an answer takes too long.
"""

from __future__ import annotations

import functools
import html  # noqa: F401  (jinja2 would import html, pprint and textwrap later, when no file can be opened)
import json
import pprint  # noqa: F401
import textwrap  # noqa: F401
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import jinja2.constants
import jinja2.debug
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError

from shardhub.text.confinement import serve
from shardhub.text.openings import Opened, Render, continue_turn, open_turn

Mode = Callable[[Render, dict[str, Any]], Opened]

# Memory limit of a template, beyond the running interpreter.
MEMORY_BYTES = 512 * 1024**2
# A second limit behind the caller's clock, for a worker whose caller is gone.
CPU_S = 2
# CPU time for the small conversations that show what a template accepts; legitimate templates take milliseconds.
EACH_S = 0.5
# A template's message is shown to a person; anything beyond this is noise.
MAX_MESSAGE_CHARS = 2000


class RaisedByTemplate(TemplateError):
    """The template called `raise_exception`."""


class OutputTooLong(Exception):
    """The rendered text exceeded the limit of the request."""


class Generation(jinja2.ext.Extension):
    """The tag `{% generation %}`, which marks the model's text for training. Its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  (the type is jinja's)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Parse the tag's body as a block."""
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore, which could give access to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # No named parameters, as in jinja, so that `namespace(self=...)` works like any other name.
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class Dict:
    """`dict` for templates: the call and `fromkeys`, without access to the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Make a dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Make a dict with these keys."""
        return dict.fromkeys(*args)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The environment in which transformers renders chat templates.

    Source: transformers/utils/chat_template_utils.py, `_cached_compile_jinja_template`.
    """
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = _tojson
    env.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": Dict(),
        "namespace": Namespace,
    }
    return env


def render(template: jinja2.Template, variables: dict[str, Any], max_chars: int) -> str:
    """Render piece by piece, so that an endless text is detected while it grows."""
    pieces, num_chars = [], 0
    for piece in template.generate(**variables):
        pieces.append(piece)
        num_chars += len(piece)
        if num_chars > max_chars:
            raise OutputTooLong(f"more than {max_chars} characters")
    return "".join(pieces)


def answer(line: bytes, compile_template: Callable[[str], jinja2.Template]) -> bytes:
    """Answer one request. Any failure of a template becomes an error answer."""
    try:
        request = json.loads(line)
        template, max_chars = compile_template(request["template"]), request["max_chars"]
        variables = request["variables"]

        def rendered(changed: dict[str, Any]) -> str:
            return render(template, changed, max_chars)

        if request["mode"] == "each":
            texts = _render_each(rendered, variables, request["conversations"])
            return json.dumps({"texts": texts}, ensure_ascii=False).encode()
        opened = _first(_MODES[request["mode"]], rendered, variables, request["conversations"])
        return json.dumps({"text": opened.text, "opening": opened.opening}, ensure_ascii=False).encode()
    except Exception as error:  # noqa: BLE001  (a template can raise any exception; it is reported to the caller)
        kind, message = _describe(error)
        return json.dumps({"error": kind, "message": message[:MAX_MESSAGE_CHARS]}).encode()


def main() -> None:
    """Answer requests until the input ends."""
    compile_template = functools.lru_cache(maxsize=8)(environment().from_string)
    _warm_up(compile_template)
    serve(lambda line: answer(line, compile_template), memory_bytes=MEMORY_BYTES, cpu_s=CPU_S)


def _render_each(rendered: Render, variables: dict[str, Any], conversations: list[Any]) -> list[str | None]:
    """The text of each conversation, or None if it is refused, until the time is used up."""
    latest = time.process_time() + EACH_S
    texts: list[str | None] = []
    for messages in conversations:
        if time.process_time() > latest:
            break
        try:
            text = rendered(variables | {"messages": messages})
            text.encode()
            texts.append(text)
        except Exception:  # noqa: BLE001  (a template can raise anything; the failure is the answer)
            texts.append(None)
    return texts


def _first(mode: Mode, rendered: Render, variables: dict[str, Any], conversations: list[Any]) -> Opened:
    """Render the first conversation that can be rendered. If none can, raise the first one's exception."""
    refusal: Exception | None = None
    for messages in conversations:
        try:
            return mode(rendered, variables | {"messages": messages})
        except Exception as error:  # noqa: BLE001  (a template can raise anything; the first is raised below)
            refusal = refusal or error
    raise refusal or RaisedByTemplate("the request has no messages")


def _only_render(rendered: Render, variables: dict[str, Any]) -> Opened:
    return Opened(text=rendered(variables), opening="")


_MODES: dict[str, Mode] = {"history": _only_render, "turn": open_turn, "prefix": continue_turn}


def _describe(error: Exception) -> tuple[str, str]:
    match error:
        case RaisedByTemplate():
            return "raised", str(error)
        case SecurityError():
            return "security", str(error)
        case TemplateSyntaxError():
            return "syntax", f"line {error.lineno}: {error.message}"
        case UndefinedError():
            return "undefined", str(error)
        case OutputTooLong():
            return "too big", str(error)
        case MemoryError():
            return "too big", f"more than {MEMORY_BYTES >> 20} MB of memory"
        case RecursionError():
            return "too deep", str(error)
        case UnicodeEncodeError():
            return "encoding", "the rendered text holds a lone surrogate"
    return "failed", f"{type(error).__name__}: {error}"


def _warm_up(compile_template: Callable[[str], jinja2.Template]) -> None:
    """Load what Python and jinja2 load on demand (codecs, the time zone), because no file can be opened later."""
    for template in ("{{ 'x'|upper }}{{ strftime_now('%c %Z') }}{{ messages|tojson }}", "{{ a.b }}", "{% if %}"):
        request: dict[str, Any] = {
            "template": template,
            "variables": {},
            "conversations": [[]],
            "max_chars": 100,
            "mode": "history",
        }
        answer(json.dumps(request).encode(), compile_template)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have a name that begins with an underscore: {name!r}")


def _raise_exception(message: str) -> None:
    raise RaisedByTemplate(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja's HTML escapes, which models were not trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_plain,
    )


def _plain(value: Any) -> list[Any]:
    """Convert the generators of filters such as `map` to lists, as other renderers do; transformers refuses them."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


if __name__ == "__main__":
    main()

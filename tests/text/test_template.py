"""Chat templates: rendered as in transformers, and harmless if hostile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from shardhub.errors import PromptError, ShardhubError
from shardhub.text.sandbox import RENDER_TIMEOUT_S, Sandbox
from shardhub.text.template import MAX_TEMPLATE_CHARS, ChatTemplate

FOLDER = Path(__file__).parent / "chat_templates"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.jinja")}
USER = {"role": "user", "content": "  Grüß Gott <b> & 'q' 🙂 \u2028 {{ 7*7 }} "}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!\n", "reasoning": "because"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "n": 1.5}}}],
}
RESULT = {"role": "tool", "content": "sunny"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Say <weather>", "parameters": {"type": "object"}},
}
CONVERSATIONS = {
    "one turn": ([USER], {}),
    "system": ([SYSTEM, USER], {}),
    "turns": ([SYSTEM, USER, ANSWER, USER], {"enable_thinking": False}),
    "tools": ([USER, CALL, RESULT, USER], {"tools": [TOOL]}),
    "wrong order": ([USER, USER, ANSWER], {}),
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# One worker answers all these tests; each that kills it leaves the next to start another.
CONTEXT_CHARS = 100_000


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    worker = Sandbox()
    yield worker
    worker.close()


def template(source: str, sandbox: Sandbox, max_output_chars: int = CONTEXT_CHARS) -> ChatTemplate:
    chat = ChatTemplate(source, max_output_chars=max_output_chars)
    chat._sandbox = sandbox
    return chat


def rendered_by_transformers(source: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    """The text of `apply_chat_template(tokenize=False, add_generation_prompt=True)`, or its refusal."""
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        texts, _ = render_jinja_template([plain], chat_template=source, add_generation_prompt=True, **variables)
    except TemplateError as error:
        return f"refused: {error}"
    return str(texts[0])


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_template_renders_as_in_transformers(name: str, conversation: str, sandbox: Sandbox) -> None:
    """Texts and refusals equal those of transformers, for templates like those of well-known models."""
    messages, variables = CONVERSATIONS[conversation]
    try:
        text = template(TEMPLATES[name], sandbox).render(messages, **SPECIAL, **variables)
    except PromptError as error:
        text = f"refused: {error.why}"
    assert text == rendered_by_transformers(TEMPLATES[name], messages, SPECIAL | variables)


def test_template_refuses_in_its_own_words(sandbox: Sandbox) -> None:
    """Gemma's refusal of a system message comes with the template's own words."""
    with pytest.raises(PromptError) as caught:
        template(TEMPLATES["gemma"], sandbox).render([SYSTEM, USER], **SPECIAL)
    assert caught.value.why == "System role not supported"


@pytest.mark.parametrize(
    "payload",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch MARK') }}",
        "{{ lipsum.__globals__['os'].popen('touch MARK').read() }}",
        "{{ raise_exception.__globals__['__builtins__']['open']('MARK', 'w') }}",
        "{{ strftime_now.__globals__['os'].system('touch MARK') }}",
        "{{ namespace.__init__.__globals__['sys'].modules['os'].system('touch MARK') }}",
        "{% set x = namespace(__class__='x') %}{{ x.__class__ }}",
        "{{ dict.__call__.__globals__['os'].system('touch MARK') }}",
        "{{ ('{0.__class__.__init__.__globals__}').format(cycler) }}{{ messages.__class__.__base__() }}",
        "{{ (''|attr('format_map'))(messages[0]) }}{{ messages.append(1) }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x('touch MARK', shell=True) }}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('touch MARK') }}",
    ],
)
def test_template_that_attempts_code_is_refused(payload: str, sandbox: Sandbox, tmp_path: Path) -> None:
    """A template that accesses Python's internals is refused and leaves no trace."""
    mark = tmp_path / "mark"
    with pytest.raises(PromptError):
        template(payload.replace("MARK", str(mark)), sandbox).render([USER])
    assert not mark.exists()
    assert template("fine", sandbox).render([USER]) == "fine"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ (10**(10**8))|string }}",
        "{{ '%2000000000s'|format('x') }}",
        "{{ 'x' * 4000000000 }}",
        "{% set ns = namespace(x='x' * 1000) %}{% for i in range(99999) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% macro f(n) %}{{ 'x' * 1000 }}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ range(99999)|list|string * 99 }}",
        "{{ ('a' * 60 + '!')|wordwrap(1)|urlize * 99999 }}",
        "{% for i in range(99999) %}{{ raise_exception if false else 'y' * 100 }}{% endfor %}",
        "{{ raise_exception('x' * 100000000) }}",
    ],
)
def test_template_without_bounds_is_ended(source: str, sandbox: Sandbox) -> None:
    """Endless, huge and deeply nested templates end in an error, and the next render works."""
    with pytest.raises(PromptError):
        template(source, sandbox).render([USER])
    assert template("{{ messages[0].role }}", sandbox).render([USER]) == "user"


def test_template_that_is_too_slow_says_so(sandbox: Sandbox) -> None:
    """The error for a template that takes too long names the limit."""
    slow = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(PromptError, match="too slow") as caught:
        template(slow, sandbox).render([USER])
    assert f"{RENDER_TIMEOUT_S:g} s" in caught.value.why


def test_worker_that_is_not_run_is_not_too_slow(sandbox: Sandbox) -> None:
    """If the machine stalls for longer than the limit, the template is not blamed."""
    chat = template("fine", sandbox)
    chat.start()
    process = sandbox._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    going_on = threading.Timer(RENDER_TIMEOUT_S + 0.5, process.send_signal, [signal.SIGCONT])
    going_on.start()
    assert chat.render([USER]) == "fine"
    going_on.join()
    assert sandbox._process is process


def test_template_output_is_capped_exactly(sandbox: Sandbox) -> None:
    """A text of the maximal length passes, whatever its characters; one character more is refused."""
    for char in ("x", "\x01", "🙂", '"'):
        text = {"role": "user", "content": char * 1000}
        longest = template("{{ messages[0].content }}", sandbox, max_output_chars=1000)
        assert longest.render([text]) == char * 1000
        with pytest.raises(PromptError, match="more than 999 characters"):
            template("{{ messages[0].content }}", sandbox, max_output_chars=999).render([text])


def test_long_conversation_passes_the_pipes(sandbox: Sandbox) -> None:
    """Requests and answers far larger than a pipe's buffer arrive whole."""
    text = "lorem ipsum €\n" * 100_000
    long = template("{{ messages[0].content }}", sandbox, max_output_chars=len(text))
    assert long.render([{"role": "user", "content": text}]) == text


def test_message_of_a_template_cannot_steer_the_terminal(sandbox: Sandbox) -> None:
    """Control characters in a template's own message are replaced."""
    with pytest.raises(PromptError) as caught:
        template("{{ raise_exception('a\\x1b[31mb\\nc') }}", sandbox).render([USER])
    assert caught.value.why == "a [31mb c"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% if %}", "line 1"),
        ("{{ nothing.there }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ '\\ud800' }}", "surrogate"),
    ],
)
def test_broken_template_is_a_prompt_error(source: str, why: str, sandbox: Sandbox) -> None:
    """A template's mistake is reported in Jinja's own terms."""
    with pytest.raises(PromptError) as caught:
        template(source, sandbox).render([USER])
    assert why in caught.value.why


def test_messages_that_json_cannot_hold_are_refused(sandbox: Sandbox) -> None:
    """Values that JSON cannot hold are refused."""
    for content in (object(), {1, 2}):
        with pytest.raises(PromptError, match="plain JSON"):
            template("x", sandbox).render([{"role": "user", "content": content}])
    with pytest.raises(PromptError, match="no message"):
        template("x", sandbox).render([])
    with pytest.raises(PromptError, match="too long"):
        ChatTemplate("x" * (MAX_TEMPLATE_CHARS + 1), max_output_chars=1)


def test_worker_sees_nothing_of_the_environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rendering process gets import folders and the time zone, and no other variable."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    worker = Sandbox()
    worker.start()
    try:
        assert worker._process is not None
        environ = Path(f"/proc/{worker._process.pid}/environ")
        if environ.exists():
            names = {entry.split(b"=")[0] for entry in environ.read_bytes().split(b"\0") if entry}
            assert names <= {b"PYTHONPATH", b"TZ", b"LC_CTYPE"}
    finally:
        worker.close()


def test_worker_ends_with_its_sandbox() -> None:
    """A sandbox that is dropped without `close` leaves no process."""
    worker = Sandbox()
    worker.start()
    assert worker._process is not None
    pid = worker._process.pid
    os.kill(pid, 0)
    del worker
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_worker_killed_between_renders_is_replaced() -> None:
    """A worker that died while idle is replaced unnoticed by the next render."""
    chat = ChatTemplate("fine", max_output_chars=100)
    chat.start()
    try:
        process = chat._sandbox._process
        assert process is not None
        process.kill()
        process.wait()
        assert chat.render([USER]) == "fine"
    finally:
        chat.close()


def worker_process() -> subprocess.Popen[bytes]:
    """A running worker that no sandbox would end."""
    command = [sys.executable, "-m", "shardhub.text.template_worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"ready": True}
    return process


def test_worker_ends_with_its_input() -> None:
    """When the parent process ends, the pipe closes, and the worker ends with it."""
    with worker_process() as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def test_abandoned_render_ends_by_itself() -> None:
    """A worker whose parent died in mid-render is ended by its CPU limit."""
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    request = {"template": endless, "variables": {}, "conversations": [[]], "max_chars": 100, "mode": "history"}
    with worker_process() as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.close()
        assert process.wait(timeout=60) == -signal.SIGXCPU


def test_worker_can_open_nothing(sandbox: Sandbox) -> None:
    """The worker can open no file: even a codec that Python would load from a file is unavailable."""
    with pytest.raises(PromptError, match="Too many open files"):
        template("{{ 'x'.encode('rot13') }}", sandbox).render([USER])


def test_worker_that_cannot_be_started_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system refuses another process, an error of ours has its reason."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ShardhubError, match="could not be started") as refused:
        Sandbox().start()
    assert "No such file" in refused.value.why

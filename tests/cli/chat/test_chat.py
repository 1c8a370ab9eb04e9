"""`shardhub chat` in a real terminal, over a real node: keys go in, and the screen is read as a person sees it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import cut, nodes, scripted
from tests.terminals import ALT_ENTER, CTRL_A, CTRL_C, CTRL_D, END_TIMEOUT_S, ENTER, LEFT, UP, Terminal, pasted

FOX = "The quick brown fox jumps over the lazy dog, again and again, until everybody in the world has seen it."
WIDE = (
    "\u4eca\u65e5\u306f\u3001\u4e16\u754c\u3002\u65e9\u4e0a\u597d\uff0c\u4e2d\u6587\U0001f600\u6ca1\u6709\u7a7a\u683c"
)
NUM_LONG = 400
SCRIPTS = {
    scripted.GO: FOX,
    scripted.go("wide"): list(WIDE),
    scripted.go("thought"): ["<think>", "I ponder. ", "Deeply.", "\n</think>\n\n", "It is so."],
    scripted.go("long"): [f" word{number}" for number in range(NUM_LONG)],
}
CODES = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A pipeline of two stages whose answer depends on the question."""
    folder = tmp_path_factory.mktemp("chat")
    template = scripted.choosing(scripted.CHATML, SCRIPTS) + "{#</think><think>#}"
    model = scripted.save(folder / "model", SCRIPTS, template=template)
    return cut.cut(model, folder / "out", (1,)).folder


@pytest.fixture(scope="module")
def node(pipeline) -> Iterator[nodes.Node]:
    """A node for both stages."""
    started = nodes.Node(*(pipeline.parent / name for name in ("m-shard-0", "m-shard-1"))).wait_ready()
    yield started
    nodes.stop_all([started])


@pytest.fixture
def chat(pipeline, node, tmp_path) -> Callable[..., Terminal]:
    """Starts `shardhub chat` in a terminal."""

    def start(*options: object, env: dict[str, str] | None = None, **more) -> Terminal:
        env = {"SHARDHUB_STATE": str(tmp_path / "state"), **(env or {})}
        return Terminal("chat", pipeline, "--node", node.address, *options, env=env, **more)

    return start


def ready(terminal: Terminal, times: int = 1) -> None:
    """Wait for a prompt, after this many others with their inputs."""
    terminal.waits_for(lambda rows: rows[-1] == ">" and sum(row.startswith(">") for row in rows) == times)


def say(terminal: Terminal, text: str, times: int) -> None:
    """Send an input, the given one of the chat, and wait for the next prompt."""
    terminal.type(text + ENTER)
    ready(terminal, times + 1)


def saved(terminal: Terminal, file: Path, times: int) -> list[str]:
    """Save the conversation, and return the contents of its messages."""
    say(terminal, f"/save {file}", times)
    return [message["content"] for message in json.loads(file.read_text())["messages"]]


def test_what_is_one_question(chat, tmp_path) -> None:
    """Pasted lines, lines after Alt-Enter, and lines between triple quotes are one question; keys edit it."""
    with chat() as terminal:
        ready(terminal)
        say(terminal, pasted("one\r\ntwo\n\n/help"), 1)
        say(terminal, f"a{ALT_ENTER}b", 2)
        say(terminal, f'"""c{ENTER}d"""', 3)
        say(terminal, f"23{CTRL_A}1{LEFT}0", 4)
        say(terminal, "//help", 5)
        say(terminal, "/etc/hosts is a file", 6)
        asked = saved(terminal, tmp_path / "chat.json", 7)[::2]
        terminal.type(pasted("\u65e5" * 1500) + ENTER)
        terminal.sees("/clear begins a new conversation.")
    assert asked == ["one\ntwo\n\n/help", "a\nb", "c\nd", "0123", "/help", "/etc/hosts is a file"]


def test_commands(chat, tmp_path) -> None:
    """They are listed, unknown ones are refused, and they change settings, system prompt and conversation."""
    file = tmp_path / "chat.json"
    with chat(columns=100) as terminal:
        ready(terminal)
        say(terminal, "/help", 1)
        terminal.sees("/retry            answer the last question again (also /regenerate)")
        say(terminal, "/nonsense", 2)
        terminal.sees("Error: There is no command /nonsense.")
        terminal.sees("begin it with two slashes: //nonsense")
        say(terminal, "/set max-tokens 2", 3)
        terminal.sees("max-tokens          2")
        say(terminal, "hello", 4)
        terminal.sees("cut after 2 tokens. /set max-tokens 4 allows longer ones.")
        say(terminal, "/set max-tokens 100", 5)
        say(terminal, "/retry", 6)
        say(terminal, "/system Be brief.", 7)
        assert saved(terminal, file, 8) == ["hello", FOX]
        assert json.loads(file.read_text())["system"] == "Be brief."
        assert file.stat().st_mode & 0o777 == 0o600
        say(terminal, "/clear", 9)
        say(terminal, '/system ""', 10)
        say(terminal, "/retry", 11)
        terminal.sees("There is no question to answer again.")
        say(terminal, f"/load {file}", 12)
        terminal.sees("The conversation has 1 question.")
        say(terminal, "/status", 13)
        terminal.sees("m, with 4096 positions for a conversation")
        terminal.sees("System prompt: Be brief.", 2)
        terminal.type("/bye" + ENTER)
        assert terminal.process.wait(END_TIMEOUT_S) == 0


def test_answers_are_wrapped_between_words(chat) -> None:
    """No word is broken, no row is wider than the terminal, and wide characters count as two."""
    with chat("--temp", 0, columns=21) as terminal:
        ready(terminal)
        say(terminal, "hello", 1)
        say(terminal, "next_wide_end", 2)
        rows = terminal.rows
    first = rows.index("> hello") + 1
    assert rows[first : first + 3] == ["The quick brown fox", "jumps over the lazy", "dog, again and again,"]
    # pyte fills the second cell of a wide character with nothing
    shown = [row for row in rows if row[:1] and ord(row[0]) > 0x2000]
    assert "".join(shown) == WIDE
    assert len(shown) == 2
    assert not any(row.startswith(("\u3001", "\u3002", "\uff0c")) for row in shown)


def test_a_resized_window_breaks_no_word(chat) -> None:
    """When the window becomes wider in mid-answer, later rows are wrapped at the new width."""
    with chat(columns=24, lines=200) as terminal:
        ready(terminal)
        terminal.type("next_long_end" + ENTER)
        terminal.sees("word20 ")
        terminal.resize(60, 200)
        terminal.waits_for(lambda rows: any(row.startswith("word") and len(row) > 24 for row in rows[:-1]))
        terminal.type(CTRL_C)
        ready(terminal, 2)
        rows = [row for row in terminal.rows if row.startswith("word")]
    words = " ".join(rows).split()
    assert words == [f"word{number}" for number in range(len(words))]
    assert max(map(len, rows)) <= 60


def test_interrupts(chat, tmp_path) -> None:
    """Ctrl-C ends the answer and keeps what is shown; at a prompt it discards the text, then asks once, then ends."""
    with chat(columns=60, lines=200) as terminal:
        ready(terminal)
        terminal.type("next_long_end" + ENTER)
        terminal.sees("word20")
        terminal.type(CTRL_C)
        terminal.sees("stopped")
        ready(terminal, 2)
        shown = " ".join(row for row in terminal.rows if row.startswith("word"))
        question, answer = saved(terminal, tmp_path / "chat.json", 2)
        assert (question, answer.split()) == ("next_long_end", shown.split())
        terminal.type("discarded" + CTRL_C)
        ready(terminal, 4)
        terminal.type(CTRL_C)
        terminal.sees("Ctrl-C again, Ctrl-D or /bye ends the chat.")
        ready(terminal, 5)
        terminal.type(CTRL_C)
        assert terminal.process.wait(END_TIMEOUT_S) == 0


def test_typing_during_an_answer_waits_unseen(chat, tmp_path) -> None:
    """What is typed or pasted while the model writes does not stand in its answer; it is read at the next prompt."""
    with chat("--max-tokens", 60, columns=60, lines=100) as terminal:
        ready(terminal)
        terminal.type("next_long_end" + ENTER)
        terminal.sees("word10 ")
        terminal.type("ahead" + ENTER + pasted("x\ny") + ENTER)
        ready(terminal, 4)
        asked = saved(terminal, tmp_path / "chat.json", 4)[::2]
        words = " ".join(row for row in terminal.rows if row.startswith("word")).split()
    assert asked == ["next_long_end", "ahead", "x\ny"]
    assert words == [f"word{number}" for number in range(60)] * 3


def test_history_reaches_other_chats(chat, tmp_path) -> None:
    """The arrow keys bring back questions of earlier chats, unless --no-history is given."""
    with chat() as terminal:
        ready(terminal)
        say(terminal, "first question", 1)
        say(terminal, " secret question", 2)
        terminal.type(CTRL_D)
        assert terminal.process.wait(END_TIMEOUT_S) == 0
    file = tmp_path / "state" / "chat-history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == '"first question"\n'
    with chat("--no-history") as terminal:
        ready(terminal)
        terminal.type(UP)
        say(terminal, "another", 1)
        terminal.sees("> another")
    with chat() as terminal:
        ready(terminal)
        terminal.type(UP)
        terminal.sees("> first question")
    assert file.read_text() == '"first question"\n'


def test_reasoning_is_dim(chat, tmp_path) -> None:
    """Reasoning is shown dim and apart, without its tags, and kept beside the answer; NO_COLOR turns the dim off."""
    with chat() as terminal:
        ready(terminal)
        say(terminal, "next_thought_end", 1)
        rows = terminal.rows
        dim = "".join(re.findall(r"\x1b\[2m([^\x1b]*)\x1b\[22m", terminal.written)).replace("\r", "")
        assert dim == "Thinking...\nI ponder. Deeply....done thinking.\n"
        assert saved(terminal, tmp_path / "chat.json", 2)[1] == "It is so."
        assert (
            json.loads((tmp_path / "chat.json").read_text())["messages"][1]["reasoning_content"]
            == "I ponder. Deeply.\n"
        )
    first = rows.index("Thinking...")
    assert rows[first : first + 5] == ["Thinking...", "I ponder. Deeply.", "...done thinking.", "", "It is so."]
    with chat(env={"NO_COLOR": "1"}) as terminal:
        ready(terminal)
        say(terminal, "next_thought_end", 1)
        terminal.sees("Thinking...\nI ponder. Deeply.\n...done thinking.\n\nIt is so.")
        assert {*CODES.findall(terminal.written)} <= {"\x1b[0m"}


def test_events_stand_on_lines_of_their_own(pipeline) -> None:
    """A lost node is reported above what is typed, and in mid-answer between words; the answer goes on whole."""
    folders = [pipeline.parent / name for name in ("m-shard-0", "m-shard-1")]
    started = [nodes.Node(*folders).wait_ready()]
    address = started[0].address

    def again() -> None:
        started.append(nodes.Node(*folders, options=("--port", address.rpartition(":")[2])).wait_ready())

    try:
        with Terminal("chat", pipeline, "--node", address, "--no-local", "--no-history", lines=200) as terminal:
            ready(terminal)
            terminal.type("next_long")
            terminal.sees("> next_long")
            started[-1].kill()
            terminal.sees("are lost")
            terminal.sees("\n> next_long")
            again()
            terminal.type("_end" + ENTER)
            terminal.sees("word10 ")
            started[-1].kill()
            terminal.sees("are lost", 2)
            again()
            terminal.sees("word90 ")
            terminal.type(CTRL_C)
            ready(terminal, 2)
            rows = terminal.rows
    finally:
        nodes.stop_all(started)
    asked = rows.index("> next_long_end")
    assert any("are lost" in row for row in rows[:asked])
    answer = rows[asked + 1 : -2]
    words = " ".join(row for row in answer if row.startswith("word")).split()
    assert words == [f"word{number}" for number in range(len(words))]
    assert any("are lost" in row for row in answer)
    assert "The node at" in " ".join(answer)


def test_terminated_chat_restores_the_terminal(chat) -> None:
    """SIGTERM in mid-answer ends with its exit code, and the terminal shows again what is typed."""
    with chat() as terminal:
        ready(terminal)
        assert not terminal.is_shown()
        terminal.type("next_long_end" + ENTER)
        terminal.sees("word10 ")
        assert not terminal.is_shown()
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(END_TIMEOUT_S) == 143
        assert terminal.is_shown()
        assert terminal.written.rindex("\x1b[?2004l") > terminal.written.rindex("\x1b[?2004h")


def test_dumb_terminals_get_no_control_sequences(chat) -> None:
    """On a terminal that cannot be controlled, commands and triple quotes work, and nothing is wrapped or dimmed."""
    with chat(env={"TERM": "dumb"}, columns=200) as terminal:
        terminal.sees("\n>")
        terminal.type(f'"""one{ENTER}next_thought_end"""{ENTER}')
        terminal.sees("<think>I ponder. Deeply.\n</think>\n\nIt is so.")
        terminal.type("/help" + ENTER)
        terminal.sees("/bye              end the chat")
        terminal.type(CTRL_C)
        terminal.sees("Ctrl-C again")
        terminal.type(CTRL_D)
        assert terminal.process.wait(END_TIMEOUT_S) == 0
    assert "\x1b[2m" not in terminal.written
    assert "?2004" not in terminal.written


def test_answers_into_a_pipe_are_plain(chat) -> None:
    """Where only the input is a terminal, prompts stay out of the output, which is as the model writes it."""
    with chat(stdout=subprocess.PIPE, text=True) as terminal:
        terminal.waits_for(lambda rows: rows[-1] == ">")
        terminal.type("next_thought_end" + ENTER)
        terminal.sees("tokens/s")
        terminal.type("/bye" + ENTER)
        assert terminal.process.communicate() == ("".join(SCRIPTS[scripted.go("thought")]) + "\n", None)
    assert "?2004" not in terminal.written


def test_every_line_of_a_pipe_is_a_question(pipeline, node) -> None:
    """In a pipe only /new is a command; answers are as the model writes them, without control sequences."""
    lines = ["/help", '"""', "next_thought_end", "/new", "hello"]
    done = nodes.shardhub("chat", pipeline, "--node", node.address, stdin="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    thought = "".join(SCRIPTS[scripted.go("thought")])
    assert done.stdout == f"{FOX}\n{FOX}\n{thought}\n{FOX}\n"
    assert done.stderr.count("tokens/s") == 4
    assert "\x1b" not in done.stdout + done.stderr

"""Settings for coding agents that call a gateway, and the tool calls of a session of five turns for each.

Every call or its result names the script that the model says next (see `tests.scripted.choosing`).
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "script"
NUM_TURNS = 5
SERVER = Path(__file__).parent / "weather_server.py"
OUT = "out.txt"

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A coding agent.

    Attributes:
        package: The npm package and its version.
        calls: The tool calls of its first four turns in a folder: a command, an image, a weather server's tool, a
            second command.
        prepare: Writes its settings for a folder, a gateway's URL and a prompt; returns the arguments and the
            environment of its process.
        resuming: The same arguments where the last session of the folder is to go on.
    """

    name: str
    package: str
    program: str
    calls: Callable[[Path], list[Call]]
    prepare: Callable[[Path, str, str], tuple[list[str], Mapping[str, str]]]
    resuming: Callable[[list[str]], list[str]]

    @property
    def reunion(self) -> str:
        """The text of the turn after a session is resumed."""
        return f"The session of {self.name} goes on."

    @property
    def farewell(self) -> str:
        """The text of the last turn."""
        return f"All five turns of {self.name} are done."

    def scripts(self, folder: Path) -> dict[str, Call | str]:
        """The model's turns by name: four calls, then a text, and a text after the session is resumed."""
        names = [f"{self.name}{turn}" for turn in range(1, NUM_TURNS + 2)]
        return dict(zip(names, [*self.calls(folder), self.farewell, self.reunion], strict=True))


def environment(home: Path) -> dict[str, str]:
    """The environment of an agent's process, free of the settings of the user who runs the tests."""
    home.mkdir(parents=True, exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", "NO_COLOR": "1"}


def image_of(agent: str, folder: Path) -> Path:
    """The path of the image that an agent reads; it selects the next turn."""
    return folder / f"next_{agent}3_end.png"


def write_image(path: Path) -> None:
    """Write a red square of 16 x 16 pixels as PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + b"\xff\0\0" * 16 for _ in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def _command(agent: str, turn: int) -> str:
    return f"echo next_{agent}{turn}_end >> {OUT}; cat {OUT}"


def _city(agent: str) -> dict[str, str]:
    return {"city": f"next_{agent}4_end"}


def _codex_calls(folder: Path) -> list[Call]:
    return [
        ("exec_command", {"cmd": _command("codex", 2)}),
        ("view_image", {"path": str(image_of("codex", folder))}),
        ("mcp__wx__get_weather", _city("codex")),
        ("exec_command", {"cmd": _command("codex", 5)}),
    ]


def _prepare_codex(folder: Path, url: str, prompt: str) -> tuple[list[str], Mapping[str, str]]:
    home = folder / "home"
    settings = {
        "model": MODEL,
        "model_provider": "shardhub",
        "model_providers.shardhub.name": "shardhub",
        "model_providers.shardhub.base_url": f"{url}/v1",
        "model_providers.shardhub.wire_api": "responses",
        "mcp_servers.wx.command": sys.executable,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    env = environment(home) | {"CODEX_HOME": str(home)}
    (home / "config.toml").write_text("\n".join([*lines, f"mcp_servers.wx.args = [{json.dumps(str(SERVER))}]"]))
    return ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", prompt], env


def _claude_calls(folder: Path) -> list[Call]:
    return [
        ("Bash", {"command": _command("claude", 2), "description": "Begin"}),
        ("Read", {"file_path": str(image_of("claude", folder))}),
        ("mcp__wx__get_weather", _city("claude")),
        ("Bash", {"command": _command("claude", 5), "description": "End"}),
    ]


def _prepare_claude(folder: Path, url: str, prompt: str) -> tuple[list[str], Mapping[str, str]]:
    env = environment(folder / "home") | {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    servers = folder / "servers.json"
    servers.write_text(json.dumps({"mcpServers": {"wx": {"command": sys.executable, "args": [str(SERVER)]}}}))
    allowed = "Bash Read mcp__wx__get_weather"
    return ["-p", prompt, "--mcp-config", str(servers), "--allowedTools", allowed, "--output-format", "json"], env


def _continue_calls(folder: Path) -> list[Call]:
    return [
        ("Bash", {"command": _command("continue", 2)}),
        ("Read", {"filepath": str(image_of("continue", folder))}),
        ("get_weather", _city("continue")),
        ("Bash", {"command": _command("continue", 5)}),
    ]


def _prepare_continue(folder: Path, url: str, prompt: str) -> tuple[list[str], Mapping[str, str]]:
    home = folder / "home"
    env = environment(home) | {"CONTINUE_GLOBAL_DIR": str(home), "CONTINUE_TELEMETRY_ENABLED": "0"}
    settings = {
        "name": "tests",
        "version": "1.0.0",
        "schema": "v1",
        "models": [
            {
                "name": MODEL,
                "provider": "openai",
                "model": MODEL,
                "apiBase": f"{url}/v1",
                "apiKey": "none",
                "roles": ["chat"],
                "capabilities": ["tool_use", "image_input"],
            }
        ],
        "mcpServers": [{"name": "wx", "command": sys.executable, "args": [str(SERVER)]}],
    }
    (home / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return ["--config", str(home / "config.yaml"), "--auto", "-p", prompt], env


AGENTS = (
    Agent(
        name="codex",
        package="@openai/codex@0.171.0",
        program="codex",
        calls=_codex_calls,
        prepare=_prepare_codex,
        resuming=lambda arguments: [arguments[0], "resume", "--last", *arguments[1:]],
    ),
    Agent(
        name="claude",
        package="@anthropic-ai/claude-code@2.1.197",
        program="claude",
        calls=_claude_calls,
        prepare=_prepare_claude,
        resuming=lambda arguments: [*arguments, "--continue"],
    ),
    Agent(
        name="continue",
        package="@continuedev/cli@1.5.47",
        program="cn",
        calls=_continue_calls,
        prepare=_prepare_continue,
        resuming=lambda arguments: ["--resume", *arguments],
    ),
)


def program_of(agent: Agent, modules: Path) -> str:
    """The program of an agent that npm installed."""
    path = shutil.which(agent.program, path=str(modules / "node_modules" / ".bin"))
    assert path is not None, f"npm installed no {agent.program}"
    return path

"""Coding agents, unmodified from the registry, in sessions that go on until the model ends them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import cut, scripted
from tests.gateway.clients import agents, npm
from tests.gateway.serving import GatewayProcess

CONTEXT = 131072
# The agents' own prompts have up to 100,000 characters, and a CPU reads 400 tokens a second.
CHARS_PER_TOKEN = 32
# A session takes ten seconds on an idle machine.
SESSION_TIMEOUT_S = 240
# One system message, first; then users and assistants in turn, each with a text. Every other history is refused.
STRICT = (
    "{#- tool_call.name <tool_call> -#}"
    "{%- if messages[0].role == 'system' -%}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n"
    "{%- set turns = messages[1:] -%}{%- else -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for message in turns -%}"
    "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) or message.role not in ('user', 'assistant') -%}"
    "{{ raise_exception('Roles must alternate between user and assistant.') }}{%- endif -%}"
    "<|im_start|>{{ message.role }}\n{{ message.content + '' }}<|im_end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder with the agents. Claude Code's program is fetched by a script of its package."""
    packages = [agent.package for agent in agents.AGENTS]
    return npm.install(tmp_path_factory.mktemp("agents"), packages, "--foreground-scripts")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder to work in for each agent."""
    root = tmp_path_factory.mktemp("work")
    return {agent.name: root / agent.name for agent in agents.AGENTS}


@pytest.fixture(scope="module")
def strict_gateway(tmp_path_factory, folders):
    """A gateway whose model writes the turns of every agent, under a restrictive template."""
    scripts = {scripted.GO: "Hello."}
    for agent in agents.AGENTS:
        for name, turn in agent.scripts(folders[agent.name]).items():
            scripts[scripted.go(name)] = turn if isinstance(turn, str) else _written(*turn)
    root = tmp_path_factory.mktemp("scripted")
    template = scripted.choosing(STRICT, scripts)
    model = scripted.save(
        root / "m",
        scripts,
        template=template,
        config={"max_position_embeddings": CONTEXT},
        chars_per_token=CHARS_PER_TOKEN,
    )
    process = GatewayProcess(cut.cut(model, root / "out", (1,)).folder, [], ("--model-name", agents.MODEL))
    try:
        yield process
    finally:
        assert process.stop() == 0, "the gateway did not end well"


@pytest.mark.parametrize("agent", agents.AGENTS, ids=lambda agent: agent.name)
def test_a_session_reaches_its_last_turn(strict_gateway, modules, folders, agent) -> None:
    """A command, an image, an MCP tool and a second command lead to the last words; a resumed session goes on."""
    folder = folders[agent.name]
    folder.mkdir()
    agents.write_image(agents.image_of(agent.name, folder))
    program = agents.program_of(agent, modules)
    arguments, env = agent.prepare(folder, strict_gateway.url, f"Please begin: next_{agent.name}1_end")
    assert agent.farewell in _said([program, *arguments], folder, env)
    assert _lines(folder) == [f"next_{agent.name}{turn}_end" for turn in (2, 5)]
    arguments, env = agent.prepare(folder, strict_gateway.url, f"Please go on: next_{agent.name}6_end")
    assert agent.reunion in _said([program, *agent.resuming(arguments)], folder, env)


def _said(command: list[str], folder: Path, env: Mapping[str, str]) -> str:
    """The stdout of an agent's process, which must succeed."""
    session = subprocess.run(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SESSION_TIMEOUT_S,
        check=False,
    )
    assert session.returncode == 0, session.stdout[-2000:] + session.stderr[-2000:]
    return session.stdout


def _lines(folder: Path) -> list[str]:
    """The lines that the commands of a session wrote."""
    return (folder / agents.OUT).read_text().split()


def _written(name: str, arguments: dict[str, Any]) -> str:
    """A call in the model's notation."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"

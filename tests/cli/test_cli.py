"""The command line as a user runs it: each command in a process of its own, and variations of it in this one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardhub.cli.app import app
from shardhub.usecases.sizes import DEFAULT_CONTEXT
from tests import cut, forks, nodes, tiny
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_tokenizer) -> Path:
    """A tiny model's folder with a real tokenizer of its vocabulary."""
    folder = cut.tiny_model(tmp_path_factory.mktemp("cli") / "model", "llama_sliding")
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(model, tmp_path_factory):
    return cut.cut(model, tmp_path_factory.mktemp("cli-out"), (2, 4))


@pytest.fixture(scope="module")
def served(pipeline):
    started = nodes.start(*((cut.shard_folder(pipeline, index),) for index in range(3)))
    yield started
    nodes.stop_all(started)


@pytest.fixture(scope="module")
def endless(tmp_path_factory, tiny_tokenizer):
    """A pipeline whose greedy answers go on for thousands of tokens, since its end token is unlikely, and its nodes."""
    folder = tmp_path_factory.mktemp("cli-endless")
    config = {**tiny.config("llama"), "max_position_embeddings": DEFAULT_CONTEXT}
    model = tiny.build(config)
    model.lm_head.weight[tiny.END] = 0
    tiny.save(model, config, folder / "model")
    tiny_tokenizer(folder / "model")
    pipeline = cut.cut(folder / "model", folder / "out", (3,))
    started = nodes.start(*((cut.shard_folder(pipeline, index),) for index in range(2)))
    yield pipeline, started
    nodes.stop_all(started)


def here(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in this process, which has imported MLX already."""
    done = CliRunner().invoke(app, [str(part) for part in arguments], env=env)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def node_options(served) -> list[str]:
    return [part for node in served for part in ("--node", node.address)]


def fails(result: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    """Check that the command ended with this code and one screen with what, why and hint."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith(("Error:", "Why:", "Try:"))]
    assert errors
    assert errors[0].startswith("Error:")
    assert len(errors) <= 3
    for text in texts:
        assert text in result.stderr, result.stderr


def test_plan_shows_stages_without_writing(model) -> None:
    """A table goes to stdout, and the same as JSON, which split accepts."""
    before = sorted(model.iterdir())
    result = nodes.shardhub("plan", model, "--stages", 3)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].split()[:2] == ["stage", "layers"]
    assert "\x1b" not in result.stdout
    assert sorted(model.iterdir()) == before
    as_json = json.loads(here("plan", model, "--stages", 3, "--json").stdout)
    assert as_json["stages"][-1]["stop"] == tiny.NUM_LAYERS


def test_plan_for_unequal_machines_says_when_one_is_enough(model) -> None:
    """Machines of 64, 32 and 16 GB: the first line says that one of them holds the whole model."""
    machines = [part for text in ("a=64GB", "b=32GB", "c=16GB") for part in ("--machine", text)]
    result = here("plan", model, *machines)
    assert result.returncode == 0, result.stderr
    assert "fits on a alone" in result.stdout.splitlines()[0]
    assert all(name in result.stdout for name in (" a ", " b ", " c "))


def test_split_takes_a_plan_and_generates_what_every_cut_generates(model, pipeline, tmp_path) -> None:
    """plan --json piped into split --plan, then generate with all stages in this process: the tokens of another cut."""
    plan = tmp_path / "plan.json"
    plan.write_text(here("plan", model, "--stages", 2, "--json").stdout)
    result = nodes.shardhub("split", model, tmp_path / "out", "--plan", plan, "--name", "p", "--json")
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    assert len(made["shards"]) == 2
    answers = [
        here("generate", folder, "--raw", "--prompt", "abc abc", "--max-tokens", 8, "--json")
        for folder in (made["pipeline"], pipeline.folder)
    ]
    assert [answer.returncode for answer in answers] == [0, 0], [answer.stderr for answer in answers]
    tokens = [json.loads(answer.stdout)["tokens"] for answer in answers]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 8


def test_generate_over_nodes(pipeline, served) -> None:
    """Text goes to stdout and timing to stderr; the JSON has tokens, usage and where each stage ran."""
    command = ["generate", "--manifest", pipeline.folder, *node_options(served), "--prompt", "hello", "--max-tokens", 6]
    plain = nodes.shardhub(*command)
    assert plain.returncode == 0, plain.stderr
    assert "tokens/s" in plain.stderr
    assert "tokens/s" not in plain.stdout
    answer = json.loads(here(*command, "--json").stdout)
    assert plain.stdout == answer["text"] + "\n"
    assert answer["usage"]["completion_tokens"] == len(answer["tokens"]) <= 6
    assert [stage["at"] for stage in answer["stages"]] == [node.address for node in served]
    assert answer["pipeline_id"] == pipeline.manifest.pipeline_id


def test_nodes_come_from_the_environment_and_from_a_file(pipeline, served, tmp_path) -> None:
    """SHARDHUB_NODES and nodes.toml have the effect of --node."""
    command = ["generate", pipeline.folder, "--no-local", "--prompt", "hello", "--max-tokens", 3, "--json"]
    addresses = [node.address for node in served]
    by_environment = here(*command, env={"SHARDHUB_NODES": ", ".join(addresses)})
    assert by_environment.returncode == 0, by_environment.stderr
    (tmp_path / "nodes.toml").write_text(f"nodes = {json.dumps(addresses)}\n")
    by_file = subprocess.run(
        [sys.executable, "-m", "shardhub", *map(str, command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert by_file.returncode == 0, by_file.stderr
    assert json.loads(by_file.stdout)["tokens"] == json.loads(by_environment.stdout)["tokens"]


def test_stages_nobody_serves_run_here_and_are_reported(pipeline, served) -> None:
    """With a node for the first stage only, the other stages run here, with a note."""
    command = ["generate", pipeline.folder, "--node", served[0].address, "--prompt", "hello", "--max-tokens", 3]
    result = nodes.shardhub(*command, "--json")
    assert result.returncode == 0, result.stderr
    assert "stage 1 to 2 runs in this process" in result.stderr
    assert [stage["at"] for stage in json.loads(result.stdout)["stages"]] == [served[0].address, "this process"]
    fails(here(*command, "--no-local"), 5, "No node serves stages 1 (layers 2 to 3), 2", "shardhub serve")


def test_stop_strings_end_the_answer_and_do_not_show(pipeline, served) -> None:
    """The text ends before the stop string, wherever its tokens begin."""
    command = ["generate", pipeline.folder, *node_options(served), "--prompt", "hello", "--max-tokens", 12, "--json"]
    whole = json.loads(here(*command).stdout)["text"]
    stop = whole[4:6]
    answer = json.loads(here(*command, "--stop", stop).stdout)
    assert answer["text"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_seeds_repeat_and_are_reported(pipeline, served) -> None:
    """A run without a seed reports the one it drew; with that seed the run is repeated."""
    command = ["generate", pipeline.folder, *node_options(served), "--prompt", "hello", "--max-tokens", 6, "--json"]
    first = json.loads(here(*command, "--temp", "1.2").stdout)
    again = json.loads(here(*command, "--temp", "1.2", "--seed", first["seed"]).stdout)
    assert again["tokens"] == first["tokens"]


def test_chat_keeps_the_conversation_on_the_nodes(pipeline, served) -> None:
    """The second turn sends only the new ids, and sessions are freed at the end."""
    command = ["chat", pipeline.folder, *node_options(served), "--max-tokens", "4", "--temp", "0"]
    result = nodes.shardhub(*command, stdin="hello\nand again\n")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("tokens/s") == 2
    for node in served:
        assert describe(node.address).num_sessions == 0


def test_interrupt_stops_the_answer_and_not_the_chat(endless) -> None:
    """After Ctrl-C during an answer the chat takes another question."""
    pipeline, served = endless
    command = ["chat", str(pipeline.folder), *node_options(served)]
    process = forks.popen(
        [*command, "--max-tokens", "100000", "--temp", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=0,
    )
    try:
        process.stdin.write("hello\n")
        assert process.stdout.read(1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        for line in process.stderr:
            if line == "stopped\n":
                break
        wait_until(lambda: describe(served[0].address).num_sessions == 0)
        process.stdin.write("more\n")
        process.stdin.close()
        wait_until(lambda: describe(served[0].address).num_sessions == 1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        errors = process.stderr.read()
        assert process.wait(60) == 0, errors
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert errors.count("stopped") == 1
    for node in served:
        assert describe(node.address).num_sessions == 0


def test_interrupted_generate_frees_the_nodes(endless) -> None:
    """Ctrl-C ends generate with 130, and no session stays on the nodes."""
    pipeline, served = endless
    command = ["generate", str(pipeline.folder), *node_options(served)]
    process = forks.popen(
        [*command, "--prompt", "hello", "--max-tokens", "100000", "--temp", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        errors = process.stderr.read()
        assert process.wait(60) == 130, errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    for node in served:
        assert describe(node.address).num_sessions == 0


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--stages", "7"], ["7 stages", "6 layers"]),
        (["--cuts", "4,2"], ["2"]),
        (["--cuts", "0"], ["0"]),
        (["--cuts", "a"], ["whole number"]),
        (["--stages", "2", "--cuts", "3"], ["cannot be combined"]),
        (["--machine", "mac"], ["NAME=RAM"]),
        (["--plan", "/nowhere/plan.json"], ["cannot be read"]),
    ],
)
def test_cuts_that_cannot_be_are_refused(model, arguments, texts) -> None:
    """Each kind of wrong cut has its own message and exit code 2."""
    fails(here("plan", model, *arguments), 2, *texts)


def test_too_small_machines_are_refused(model) -> None:
    """Exit code 6, with the memory of each machine."""
    fails(here("plan", model, "--machine", "a=1MB", "--machine", "b=1MB"), 6, "does not fit")


def test_folders_that_are_something_else_are_refused(model, pipeline, tmp_path) -> None:
    """A model in the place of a shard, a shard in the place of a model, and a missing folder are refused."""
    fails(here("serve", model), 2, "is not a shard")
    fails(here("serve", tmp_path / "nothing"), 2, "no such folder")
    fails(here("plan", cut.shard_folder(pipeline, 0), "--stages", "2"), 2, "shard")
    fails(here("generate", model, "--prompt", "x"), 2, "is not a pipeline")
    offline = {"HF_HUB_OFFLINE": "1"}
    fails(
        nodes.shardhub("plan", "nobody/no-model", "--stages", "2", env=offline),
        5,
        "folder nobody/no-model does not exist",
    )


def test_shards_that_do_not_join_are_refused(model, pipeline, tmp_path) -> None:
    """A gap, an overlap, and shards of two models are refused."""
    folders = [cut.shard_folder(pipeline, index) for index in range(3)]
    fails(here("serve", folders[0], folders[2]), 2, "gap")
    other_cut = cut.cut(model, tmp_path / "other", (3,))
    fails(here("serve", folders[0], cut.shard_folder(other_cut, 1), folders[1]), 2, "overlap")
    stranger = cut.cut(cut.tiny_model(tmp_path / "qwen", "qwen2"), tmp_path / "qwen-out", (2,))
    fails(here("serve", folders[0], cut.shard_folder(stranger, 1)), 2, "different models")


def test_listening_off_loopback_needs_a_word(pipeline) -> None:
    """Listening off loopback without --insecure-lan is refused with the reason."""
    fails(here("serve", cut.shard_folder(pipeline, 0), "--host", "0.0.0.0"), 2, "--insecure-lan")


def test_port_in_use_is_refused(pipeline) -> None:
    """The message for a port in use names the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        fails(here("serve", cut.shard_folder(pipeline, 0), "--port", port), 2, f"127.0.0.1:{port}")


def test_a_stage_that_does_not_fit_is_refused(pipeline) -> None:
    """Exit code 6 with the figures, before a weight is loaded."""
    result = here("serve", cut.shard_folder(pipeline, 0), "--memory", "1MB", "--port", "0")
    fails(result, 6, "does not fit", "KV cache")


def test_empty_and_too_long_prompts_are_refused(pipeline, served) -> None:
    """Exit code 2, and the nodes' sessions are as before."""
    command = ["generate", pipeline.folder, *node_options(served)]
    fails(here(*command, "--prompt", ""), 2, "empty")
    fails(here(*command, "--raw", "--prompt", "abc " * 5000), 2, "context")
    fails(here(*command, "--prompt", "x", "--top-p", "3"), 2, "top_p")
    for node in served:
        assert describe(node.address).num_sessions == 0


def test_sigterm_drains_and_ends_with_zero(pipeline) -> None:
    """An idle node ends at once with 0."""
    (node,) = nodes.start((cut.shard_folder(pipeline, 1),), options=("--shutdown-timeout", "3600"))
    assert node.stop() == 0


def test_health_is_serving_once_ready(served) -> None:
    """The standard health service answers for the server and for our service."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(served[0].address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "shardhub.v1.Node"):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=10)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def describe(address):
    import asyncio

    from shardhub.chain.links import describe as ask

    return asyncio.run(ask(address))


@pytest.mark.parametrize("command", ["generate", "chat", "gateway", "bench", "verify", "status"])
def test_each_command_without_a_pipeline_names_itself(command) -> None:
    """The hint is the same command with a pipeline."""
    prompt = ("--prompt", "x") if command == "generate" else ()
    fails(here(command, *prompt), 2, f"shardhub {command} ORG/MODEL-pipeline")


def test_prompt_in_another_locale_is_what_was_typed(pipeline, served) -> None:
    """An option in UTF-8 is read as such, even where the locale says ASCII."""
    command = ("generate", pipeline.folder, *node_options(served), "--raw", "--max-tokens", "3", "--json", "--prompt")
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    results = [nodes.shardhub(*command, "Zürich 日本", env=more) for more in ({}, env)]
    assert [result.returncode for result in results] == [0, 0], results[1].stderr
    assert json.loads(results[0].stdout)["tokens"] == json.loads(results[1].stdout)["tokens"]

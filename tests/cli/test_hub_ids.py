"""Hub ids in the place of folders: the commands in processes of their own, against a Hub on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from shardhub.cli.app import app
from shardhub.hub.client import hub_api
from shardhub.localhub.server import RunningHub, running_hub
from tests import cut, nodes
from tests.hub.published import OVER_LFS, Published, publish

pytestmark = OVER_LFS
MODEL = "ann/tiny"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[Path], None]) -> Path:
    """A tiny model's folder."""
    folder = cut.tiny_model(tmp_path_factory.mktemp("ids") / "model")
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A Hub on loopback."""
    cache = tmp_path_factory.mktemp("hf")
    with pytest.MonkeyPatch.context() as patch, running_hub(cache / "hub") as running:
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield running
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def published(hub: RunningHub, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The model, its two shards and their pipeline on the Hub."""
    api = hub_api(hub.endpoint, hub.token("ann"))
    work = tmp_path_factory.mktemp("work")
    api.create_repo(MODEL)
    api.upload_folder(repo_id=MODEL, folder_path=model)
    return publish(api, "ann", cut.cut(model, work / "out", (3,)), work)


@pytest.fixture
def env(hub: RunningHub, tmp_path: Path) -> dict[str, str]:
    """The environment of a Hub user with an empty cache."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token("ann"), "SHARDHUB_CACHE": str(tmp_path / "cache")}


def shardhub(env: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return nodes.shardhub(*arguments, env=env)


def here(env: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which is faster."""
    words = [str(argument) for argument in arguments]
    result = CliRunner(env=env).invoke(app, words)
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


def record(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def test_plan_from_the_hub(published: Published, env: dict[str, str], model: Path, tmp_path: Path) -> None:
    """The plan of a Hub model equals that of its folder, and no weight file is downloaded."""
    there = record(shardhub(env, "plan", MODEL, "--stages", 2, "--json"))
    assert there == record(shardhub(env, "plan", model, "--stages", 2, "--json"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_split_from_the_hub(published: Published, env: dict[str, str], tmp_path: Path) -> None:
    """The shards of a Hub model equal those of its folder byte for byte, and name repo and commit."""
    record(shardhub(env, "split", MODEL, tmp_path / "out", "--cuts", "3", "--name", "m", "--json"))
    for index in range(2):
        for path in cut.shard_folder(published.local, index).glob("*.safetensors"):
            assert (tmp_path / "out" / f"m-shard-{index}" / path.name).read_bytes() == path.read_bytes()
    stage = json.loads((tmp_path / "out" / "m-shard-0" / "stage.json").read_text())
    assert stage["source"]["repo"] == MODEL
    assert len(stage["source"]["commit"]) == 40
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_serve_and_generate_by_id(published: Published, env: dict[str, str], tmp_path: Path) -> None:
    """Nodes serve by repo id, one from its shard, one from the pipeline; the answer is that of the folders."""
    options = ("--prompt", "abc", "--raw", "--max-tokens", "8", "--json")
    expected = record(shardhub(env, "generate", published.local.folder, *options))
    first = nodes.Node(published.shards[0], env=env)
    second = nodes.Node(published.pipeline, options=("--stages", "1"), env=env)
    try:
        addresses = [part for node in (first, second) for part in ("--node", node.wait_ready().address)]
        got = record(shardhub(env, "generate", "--manifest", published.pipeline, *addresses, *options))
    finally:
        nodes.stop_all([first, second])
    assert got["tokens"] == expected["tokens"]
    assert got["pipeline_id"] == published.manifest.pipeline_id
    listed = json.loads(shardhub(env, "ls", "--json").stdout)
    assert {row["repo"] for row in listed} == {*published.shards, published.pipeline}


def test_chain_by_reference_is_that_of_copies(published: Published, env: dict[str, str], tmp_path: Path) -> None:
    """Nodes that fetch from the model's repo have the digests and the pipeline id of copies, and give their tokens."""
    options = ("--prompt", "abc", "--raw", "--max-tokens", "8", "--json")
    identities, tokens = [], []
    for name, how in (("copied", ()), ("referred", ("--by-reference",))):
        made = record(here(env, "split-and-push", MODEL, "--cuts", "3", "--name", name, "--yes", "--json", *how))
        assert (made["uploaded_bytes"] == 0) == bool(how)
        identities.append((made["pipeline_id"], [shard["stage_digest"] for shard in made["shards"]]))
        own = {**env, "SHARDHUB_CACHE": str(tmp_path / name)}
        serving = [nodes.Node(f"ann/{name}-shard-{index}", env=own) for index in range(2)]
        try:
            addresses = [part for node in serving for part in ("--node", node.wait_ready().address)]
            got = record(shardhub(own, "generate", "--manifest", f"ann/{name}-pipeline", *addresses, *options))
        finally:
            nodes.stop_all(serving)
        assert got["pipeline_id"] == made["pipeline_id"]
        tokens.append(got["tokens"])
    assert identities[0] == identities[1]
    assert tokens[0] == tokens[1] == record(shardhub(env, "generate", published.local.folder, *options))["tokens"]


def test_generate_by_id_runs_cached_stages_here(published: Published, env: dict[str, str]) -> None:
    """Unserved stages are not fetched without consent; once cached they run here, also without the Hub."""
    options = ("--prompt", "abc", "--raw", "--max-tokens", "4", "--json")
    refused = here(env, "generate", published.pipeline, *options)
    assert refused.returncode == 5
    assert f"shardhub pull {published.shards[0]}@{published.commits[0]}" in refused.stderr
    assert "MB" in refused.stderr
    assert record_list(here(env, "pull", "--shards", published.pipeline, "--json"))
    expected = record(here(env, "generate", published.local.folder, *options))
    assert record(here(env, "generate", published.pipeline, *options))["tokens"] == expected["tokens"]
    offline = shardhub({**env, "HF_HUB_OFFLINE": "1"}, "generate", published.pipeline, *options)
    assert record(offline)["tokens"] == expected["tokens"]
    assert offline.stderr.count("warning:") == 1


@pytest.mark.parametrize("memory", ["lots", "0GB", "-4GB", "12 parsecs", ""])
@pytest.mark.parametrize(
    "command", [("serve",), ("generate", "--prompt", "x"), ("split", "out", "--cuts", "3")], ids=lambda words: words[0]
)
def test_memory_that_is_not_a_size_is_refused_before_the_hub_is_asked(
    env: dict[str, str], command: tuple[str, ...], memory: str
) -> None:
    verb, *rest = command
    refused = here({**env, "HF_ENDPOINT": "http://127.0.0.1:9"}, verb, "ann/any", *rest, f"--memory={memory}")
    assert refused.returncode == 2, refused.stderr
    assert "is not an amount of memory" in refused.stderr
    machine = here({**env, "HF_ENDPOINT": "http://127.0.0.1:9"}, "plan", "ann/any", "--machine", f"mac={memory}")
    assert machine.returncode == 2
    assert "is not NAME=RAM" in machine.stderr


def test_stage_that_cannot_fit_is_refused_before_its_weights_are_fetched(
    published: Published, env: dict[str, str], tmp_path: Path
) -> None:
    """A named shard, several together, a pipeline's stage, and a stage that generate would run here."""
    size_bytes = [stage.size_bytes for stage in published.manifest.stages]
    for_one = f"{size_bytes[0] / 0.9 / 1e6 + 0.01:.6f}MB"
    too_small = f"{size_bytes[1] / 2 / 1e6:.6f}MB"
    for arguments, memory in (
        (("serve", published.shards[1]), too_small),
        (("serve", *published.shards), for_one),
        (("serve", published.pipeline, "--stages", "1"), too_small),
        (("serve", published.pipeline, "--stages", "0-1"), for_one),
        (("generate", published.pipeline, "--prompt", "abc"), for_one),
    ):
        refused = here(env, *arguments, "--memory", memory)
        assert refused.returncode == 6, refused.stderr
        assert "cannot fit on this machine" in refused.stderr
        assert "Nothing was fetched" in refused.stderr
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def record_list(result: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert result.returncode == 0, result.stderr
    printed: list[dict[str, object]] = json.loads(result.stdout)
    return printed


def test_pull_ls_rm_prune(published: Published, env: dict[str, str], tmp_path: Path) -> None:
    """A shard is fetched, listed with its layers, size and revision, and deleted with its files."""
    repo, commit = published.shards[0], published.commits[0]
    folder = here(env, "pull", repo).stdout.strip()
    assert Path(folder).is_dir()
    rows = record_list(here(env, "ls", "--json"))
    assert [(row["repo"], row["revision"], row["layers"], row["moved"]) for row in rows] == [
        (repo, commit, [0, 3], False)
    ]
    text = here(env, "ls", "--offline").stdout
    assert repo in text
    assert "layers 0 to 2 of 6" in text
    assert record(here(env, "rm", repo, "--json"))["freed_bytes"] > 0
    assert record_list(here(env, "ls", "--json")) == []
    assert record(here(env, "prune", "--json")) == {"freed_bytes": 0}
    again = here(env, "rm", repo)
    assert again.returncode == 1
    assert "not in the cache" in again.stderr


def test_wrong_names(published: Published, env: dict[str, str]) -> None:
    """A name that is neither folder nor repo is reported as both; a model instead of a shard gets the right command."""
    unknown = here(env, "serve", "ann/nothing")
    assert unknown.returncode == 1
    assert "The folder ann/nothing does not exist either" in unknown.stderr
    assert here(env, "plan", "ann/nothing", "--stages", 2).returncode == 1
    assert "shardhub split" in here(env, "serve", MODEL).stderr
    assert "shardhub serve" in here(env, "plan", published.shards[0], "--stages", 2).stderr
    assert here(env, "plan", f"{MODEL}@nowhere", "--stages", 2).returncode == 1
    assert here(env, "pull", "./out").returncode == 2
    no_hub = here({**env, "HF_ENDPOINT": "http://127.0.0.1:9"}, "ls", "--json")
    assert no_hub.returncode == 0


def test_no_secret_in_messages(published: Published, env: dict[str, str]) -> None:
    """Whatever fails, and with logs on, the token is never shown."""
    for arguments in (("serve", "ann/nothing"), ("pull", f"{MODEL}@x"), ("plan", "ann/nothing", "--stages", "2")):
        done = here(env, *arguments, "--debug")
        assert done.returncode
        assert env["HF_TOKEN"] not in done.stdout + done.stderr


def test_shard_that_is_gone(published: Published, env: dict[str, str], hub: RunningHub) -> None:
    """A shard repo deleted after its manifest was pushed is named with its stage; the other stage is served."""
    api = hub_api(hub.endpoint, hub.token("bob"))
    work = Path(env["SHARDHUB_CACHE"]).parent
    theirs = publish(api, "bob", published.local, work)
    api.delete_repo(theirs.shards[1])
    env = {**env, "HF_TOKEN": hub.token("bob")}
    gone = here(env, "serve", theirs.pipeline, "--stages", "1", "--port", "0")
    assert gone.returncode == 1
    assert "Stage 1 of m was not found" in gone.stderr
    assert theirs.shards[1] in gone.stderr
    pulled = here(env, "pull", "--shards", theirs.pipeline)
    assert pulled.returncode == 1
    assert {row["repo"] for row in record_list(here(env, "ls", "--json"))} == {theirs.pipeline, theirs.shards[0]}


@pytest.mark.parametrize(("reply", "code"), [(b"y\n", 0), (b"\n", 5)])
def test_terminal_is_asked_before_weights_are_fetched(
    published: Published, env: dict[str, str], reply: bytes, code: int
) -> None:
    """On a terminal, unserved stages that are not cached are fetched only after a yes."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "shardhub", "generate", published.pipeline, "--prompt", "a", "--raw"]
    shown = b""
    try:
        os.write(ours, reply)
        done = subprocess.run(
            [*command, "--max-tokens", "2"],
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
            timeout=120,
            check=False,
        )
        os.close(theirs)
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while data := os.read(ours, 1 << 16):
                shown += data
    finally:
        os.close(ours)
    asked = rb"No node serves stages 0, 1 \(\d+\.\d\d MB\)\. Fetch them and run them here\? \[y/N\]"
    assert re.search(asked, shown)
    assert done.returncode == code
    assert bool(list(Path(env["SHARDHUB_CACHE"]).glob("repos/ann/m-shard-*/*/*.safetensors"))) == (code == 0)

"""Stages whose numbers differ from the whole model's: refused, or split on request and then marked everywhere."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import Result
from huggingface_hub import HfApi
from typer.testing import CliRunner

from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.cli.app import app
from shardhub.errors import ParityFailed
from shardhub.manifest import Manifest, Parity, Source, decode_identified, encode
from shardhub.model.dissection import Dissection
from shardhub.naming import MANIFEST_FILE
from shardhub.parity import PARITY_FOLDER, file_name, inexactness, mismatch, settle
from shardhub.shard import read_pipeline, read_shard
from shardhub.splitting.split import split
from tests import cut, inexact, nodes
from tests.gateway.serving import GatewayProcess
from tests.hub.pushing import OVER_LFS, pushing_hub

pytestmark = OVER_LFS
SAID = "9 of 64 tokens equal, max |logit difference| 0.33, Linux x86_64 CPU, mlx 0.32.4"
WRONG = 3.0
# Every greedy token is the whole model's; its logits are not.
SLIGHTLY_WRONG = 1e-6


def shardhub(*arguments: object, **env: str) -> Result:
    """Run a command in this process, where the module is registered."""
    return CliRunner().invoke(app, [str(part) for part in arguments], env=env)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Register the module that is wrong when cut beside mlx-lm's own."""
    with pytest.MonkeyPatch.context() as patch:
        inexact.register(patch)
        yield


@pytest.fixture(scope="module")
def wrong(registered: None, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A model whose stages choose other tokens."""
    folder = inexact.save(tmp_path_factory.mktemp("wrong") / "wrong", strength=WRONG)
    tiny_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="module")
def allowed(wrong: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `wrong`, split in spite of it."""
    out = tmp_path_factory.mktemp("allowed")
    result = shardhub("split", wrong, out, "--cuts", "2", "--name", "m", "--allow-inexact", "--json")
    assert result.exit_code == 0, result.stderr
    assert "warning: this chain is inexact" in result.stderr
    assert "of 64 tokens equal" in json.loads(result.stdout)["inexact"]
    return out


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """An exact model, split as usual."""
    folder = cut.tiny_model(tmp_path_factory.mktemp("honest") / "model")
    tiny_tokenizer(folder)
    out = folder.parent / "out"
    assert shardhub("split", folder, out, "--cuts", "3", "--name", "m").exit_code == 0
    return out


@pytest.fixture(scope="module")
def marked(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exact stages, marked as inexact: nodes in processes of their own can load their module."""
    model = honest.parent / "model"
    out = tmp_path_factory.mktemp("marked")
    checkpoint = open_checkpoint(model)
    dissection = Dissection(checkpoint.config, {key: tensor.spec for key, tensor in checkpoint.tensors.items()})
    stages = dissection.stages(list(pairwise([0, 3, 6])))
    source = Source(repo=None, commit=None)
    split(checkpoint, dissection.model(), stages, out, name="m", source=source, inexact=SAID)
    return out


@pytest.mark.parametrize("strength", [WRONG, SLIGHTLY_WRONG])
def test_split_is_refused_and_leaves_nothing(strength: float, tmp_path: Path, tiny_tokenizer) -> None:
    """Other tokens, or equal tokens from other logits, end a split with 3 before a byte is written."""
    model = inexact.save(tmp_path / "model", strength=strength)
    tiny_tokenizer(model)
    result = shardhub("split", model, tmp_path / "out", "--cuts", "2")
    assert result.exit_code == 3
    assert not (tmp_path / "out").exists()
    all_equal = "64 of 64 tokens equal" in result.stderr
    assert all_equal == (strength == SLIGHTLY_WRONG)
    for text in ("max |logit difference|", "[0, 2), [2, 4)", "--allow-inexact", str(model), "Try: "):
        assert text in result.stderr


def test_the_same_module_is_split_where_it_is_exact(tmp_path: Path, tiny_tokenizer) -> None:
    """The control: without the injected difference the model passes, and its manifest has no mark."""
    model = inexact.save(tmp_path / "model", strength=0.0)
    tiny_tokenizer(model)
    result = shardhub("split", model, tmp_path / "out", "--cuts", "2", "--name", "m", "--allow-inexact", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["inexact"] is None
    assert b"inexact" not in (tmp_path / "out" / "m-pipeline" / MANIFEST_FILE).read_bytes()
    assert "inexact" not in (tmp_path / "out" / "m-shard-0" / "config.json").read_text().split('"shardhub"')[1]


def test_shards_of_earlier_runs_stay_and_the_pipeline_is_not_made(wrong: Path, tmp_path: Path) -> None:
    """A refused split leaves existing shards unchanged; an allowed one marks them."""
    only = shardhub("split", wrong, tmp_path, "--cuts", "2", "--name", "m", "--only", "0", "--allow-inexact")
    assert only.exit_code == 0, only.stderr
    before = {path: path.read_bytes() for path in (tmp_path / "m-shard-0").iterdir()}
    refused = shardhub("split", wrong, tmp_path, "--cuts", "2", "--name", "m")
    assert refused.exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["m-shard-0"]
    assert {path: path.read_bytes() for path in (tmp_path / "m-shard-0").iterdir()} == before

    assert shardhub("split", wrong, tmp_path, "--cuts", "2", "--name", "m", "--allow-inexact").exit_code == 0
    for index in range(2):
        hint = read_shard(tmp_path / f"m-shard-{index}").hint
        assert hint is not None
        assert "tokens equal" in (hint.inexact or "")


def test_inexact_split_says_so_in_every_document(allowed: Path) -> None:
    """Manifest, shards' hints and all cards contain the measurement; the record lies beside them."""
    line = read_pipeline(allowed / "m-pipeline").manifest.inexact
    assert line is not None
    for index in range(2):
        hint = read_shard(allowed / f"m-shard-{index}").hint
        assert hint is not None
        assert hint.inexact == line
    for folder in ("m-pipeline", "m-shard-0", "m-shard-1"):
        card = (allowed / folder / "README.md").read_text()
        assert card.count("**Inexact: ") == 1
        assert "of 64 tokens equal" in card
    assert list((allowed / "m-pipeline" / PARITY_FOLDER).iterdir())


def test_inexact_split_in_place_is_refused_unasked(allowed: Path, wrong: Path) -> None:
    """Repeating the command without the option ends with 3; with the option it changes nothing."""
    again = ("split", wrong, allowed, "--cuts", "2", "--name", "m")
    before = (allowed / "m-pipeline" / MANIFEST_FILE).read_bytes()
    assert shardhub(*again).exit_code == 3
    assert shardhub(*again, "--allow-inexact").exit_code == 0
    assert (allowed / "m-pipeline" / MANIFEST_FILE).read_bytes() == before


def test_push_is_refused_and_publishes_nothing(wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the option no repo is made; with it all repos are marked, and a further push needs it again."""
    monkeypatch.setenv("SHARDHUB_CACHE", str(tmp_path / "cache"))
    with pushing_hub(tmp_path / "hub") as (running, wire):
        api = HfApi(endpoint=running.endpoint, token=running.token("ann"))
        env = {"HF_ENDPOINT": api.endpoint, "HF_TOKEN": str(api.token)}
        push = ("split-and-push", wrong, "--cuts", "2", "--json")
        refused = shardhub(*push, **env)
        assert refused.exit_code == 3
        assert "tokens equal" in refused.stderr
        assert list(api.list_models(author="ann")) == []
        assert wire.put_bytes == 0

        pushed = shardhub(*push, "--allow-inexact", **env)
        assert pushed.exit_code == 0, pushed.stderr
        line = json.loads(pushed.stdout)["inexact"]
        manifest = Path(api.hf_hub_download("ann/wrong-pipeline", MANIFEST_FILE, local_dir=tmp_path / "p"))
        assert decode_identified(Manifest, manifest.read_bytes(), where="it").inexact == line
        config = Path(api.hf_hub_download("ann/wrong-shard-1", "config.json", local_dir=tmp_path / "s"))
        assert json.loads(config.read_text())["shardhub"]["inexact"] == line

        assert shardhub(*push, **env).exit_code == 3
        again = shardhub(*push, "--allow-inexact", **env)
        assert json.loads(again.stdout)["inexact"] == line
        assert {row["action"] for row in json.loads(again.stdout)["shards"]} == {"already there"}
        assert json.loads(again.stdout)["pipeline"]["action"] == "already there"


def test_generate_over_an_inexact_pipeline_says_so(allowed: Path) -> None:
    """The warning comes at start, and the report contains it."""
    result = shardhub("generate", allowed / "m-pipeline", "--raw", "--prompt", "Hi", "--max-tokens", "2", "--json")
    assert result.exit_code == 0, result.stderr
    line = read_pipeline(allowed / "m-pipeline").manifest.inexact
    assert f"warning: this chain is inexact; against the whole model: {line}" in result.stderr
    assert json.loads(result.stdout)["inexact"] == line


def test_verify_says_that_a_pipeline_is_inexact(allowed: Path) -> None:
    """All files are as published, so that all checks pass, and the report contains the mark."""
    result = shardhub("verify", allowed / "m-pipeline", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["inexact"] == read_pipeline(allowed / "m-pipeline").manifest.inexact
    assert "warning: this chain is inexact" in result.stderr


def test_recorded_parity_below_full_is_said_at_start(honest: Path, tmp_path: Path) -> None:
    """A pipeline whose newest record is not exact warns at start; one with an exact record does not."""
    generate = ("--raw", "--prompt", "Hi", "--max-tokens", "1", "--json")
    quiet = shardhub("generate", honest / "m-pipeline", *generate)
    assert "inexact;" not in quiet.stderr
    assert json.loads(quiet.stdout)["inexact"] is None
    out = Path(shutil.copytree(honest, tmp_path / "out"))
    folder = out / "m-pipeline"
    (path,) = (folder / PARITY_FOLDER).iterdir()
    worse = Parity.model_validate_json(path.read_bytes()).model_copy(update={"tokens_equal": 60})
    path.unlink()
    (folder / file_name(worse)).write_bytes(encode(worse))
    loud = shardhub("generate", folder, *generate)
    assert "warning: this chain is inexact; against the whole model: 60 of 64 tokens" in loud.stderr
    assert "60 of 64 tokens" in json.loads(loud.stdout)["inexact"]


def test_node_of_an_inexact_shard_says_so_to_all(marked: Path, honest: Path) -> None:
    """A node that has only a shard warns at start and tells heads, even those whose manifest has no mark."""
    started = nodes.start((marked / "m-shard-0",), (honest / "m-shard-1",))
    try:
        first, second = started
        assert first.ready["inexact"] == SAID
        assert f"inexact; against the whole model: {SAID}" in first.errors()
        assert second.ready["inexact"] is None
        assert "inexact" not in second.errors()
        named = [part for node in started for part in ("--node", node.address)]
        generate = ("--no-local", "--raw", "--prompt", "Hi", "--max-tokens", "1", "--json")
        result = shardhub("generate", honest / "m-pipeline", *named, *generate)
        assert result.exit_code == 0, result.stderr
        assert f"warning: this chain is inexact; against the whole model: {SAID}" in result.stderr
        assert json.loads(result.stdout)["inexact"] == SAID

        gateway = GatewayProcess(honest / "m-pipeline", [node.address for node in started])
        try:
            with urllib.request.urlopen(f"{gateway.url}/shardhub/state", timeout=60) as answer:
                assert json.load(answer)["inexact"] == SAID
        finally:
            gateway.stop()

        shown = shardhub("status", honest / "m-pipeline", *named, "--json")
        report = json.loads(shown.stdout)
        assert report["inexact"] is None
        assert [node["host"].get("inexact") for node in report["nodes"]] == [SAID, None]
        table = shardhub("status", marked / "m-pipeline", *named)
        assert f"{first.address}: inexact: {SAID}" in table.stdout
        assert f"inexact; against the whole model: {SAID}" in table.stderr
    finally:
        nodes.stop_all(started)


def test_mark_changes_no_identity(marked: Path, honest: Path) -> None:
    """Stage digests and pipeline id are those of the stages without the mark; unmarked documents have no such field."""
    with_it, without = (read_pipeline(out / "m-pipeline").manifest for out in (marked, honest))
    assert with_it.inexact == SAID
    assert with_it.pipeline_id == without.pipeline_id
    assert encode(without) == encode(with_it.model_copy(update={"inexact": None}))
    assert b"inexact" not in encode(without)


def test_findings_are_settled_in_one_place() -> None:
    """Findings raise an error with all of them, or become one line of printable ASCII; without any nothing happens."""
    assert settle([], where="m", allow_inexact=False) is None
    with pytest.raises(ParityFailed, match=r"first.*second"):
        settle(["first", "second"], where="m", allow_inexact=False)
    assert settle(["first", "sec\nond é"], where="m", allow_inexact=True) == "first; sec ond ?"
    assert len(settle(["x" * 500], where="m", allow_inexact=True) or "") == 200


@pytest.mark.parametrize(
    ("changes", "is_found"),
    [
        ({}, False),
        ({"tokens_equal": 63}, True),
        ({"max_abs_logit_difference": 1e-9}, True),
        ({"num_nan_steps": 3}, False),
    ],
)
def test_record_is_held_to_every_number(honest: Path, changes: dict, is_found: bool) -> None:
    """Any different token or logit counts, except NaN at the same logits of both sides."""
    (path,) = (honest / "m-pipeline" / PARITY_FOLDER).iterdir()
    record = Parity.model_validate_json(path.read_bytes()).model_copy(update=changes)
    assert (mismatch(record) is not None) == is_found
    assert inexactness(honest / "m-pipeline", read_pipeline(honest / "m-pipeline").manifest) is None


def test_record_beside_a_manifest_counts_unless_only_what_it_names_is_read(honest: Path, tmp_path: Path) -> None:
    """Under a required signature an unsigned record cannot mark a chain as inexact."""
    pipeline = shutil.copytree(honest / "m-pipeline", tmp_path / "m-pipeline")
    (path,) = (pipeline / PARITY_FOLDER).iterdir()
    record = Parity.model_validate_json(path.read_bytes()).model_copy(update={"tokens_equal": 9})
    path.unlink()
    (pipeline / file_name(record)).write_bytes(encode(record))
    manifest = read_pipeline(pipeline).manifest
    assert "9 of 64 tokens" in (inexactness(pipeline, manifest) or "")
    assert inexactness(pipeline, manifest, only_named=True) is None

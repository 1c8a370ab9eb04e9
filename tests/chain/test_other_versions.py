"""Nodes with another mlx-lm than the model was split with: used where proven, else refused with both versions."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import mlx_lm
import pytest

from shardhub.chain.chain import Chain
from shardhub.chain.links import NodeLink, describe
from shardhub.errors import HandshakeError
from tests import cut, nodes

OTHER = "99.0.0"
# What another mlx-lm may make of the llama module: text of the installed one, and what stands there instead.
EPSILON = ("eps=args.rms_norm_eps", "eps=2 * args.rms_norm_eps")
RESIDUAL = (
    "            h = layer(h, mask, cache=cache)\n",
    "            h = layer(h, mask, cache=cache)\n"
    "            first = h if layer is self.layers[0] else first\n"
    "            h = h + 0.1 * first\n",
)
TUPLES = (
    ("            h = layer(h, mask, cache=cache)\n", "            h, _ = layer(h, mask, cache=cache)\n"),
    ("        out = h + r\n        return out\n", "        out = h + r\n        return out, r\n"),
)
REFUSED = {
    "another crossing is needed": ((RESIDUAL,), "would not compute here what the whole model computes"),
    "another structure is handed on": (TUPLES, "differs from what the model passes on here"),
    "the module is not there": (None, "does not support the architecture 'llama'"),
}
Upstream = Callable[..., dict[str, str]]


@pytest.fixture
def upstream(tmp_path: Path) -> Upstream:
    """Makes an environment in which mlx-lm has another version and its llama module these changes, if any."""

    def make(*changes: tuple[str, str], is_there: bool = True) -> dict[str, str]:
        folder = tmp_path / f"upstream-{len(list(tmp_path.glob('upstream-*')))}"
        package = Path(mlx_lm.__file__).parent
        shutil.copytree(package, folder / "mlx_lm", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / f"mlx_lm-{OTHER}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: mlx-lm\nVersion: {OTHER}\n"
        (folder / f"mlx_lm-{OTHER}.dist-info" / "METADATA").write_text(metadata)
        module = folder / "mlx_lm" / "models" / "llama.py"
        text = module.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        if is_there:
            module.write_text(text)
        else:
            module.unlink()
        return {"PYTHONPATH": str(folder)}

    return make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama, split in two with the installed versions; treat it as read-only."""
    folder = tmp_path_factory.mktemp("made")
    return cut.cut(cut.tiny_model(folder / "model"), folder, (3,)).folder.parent


async def try_chain(*addresses: str) -> None:
    """Make a chain of these nodes, and end it."""
    links = [NodeLink(address, await describe(address)) for address in addresses]
    chain = await Chain.start(links)
    await chain.stop()


def test_stages_of_one_computation_make_a_chain(made: Path, upstream: Upstream) -> None:
    """A chain needs the published graph, under any version, or one version on all nodes."""
    first, second, same, changed = made / "m-shard-0", made / "m-shard-1", upstream(), upstream(EPSILON)
    started = [
        nodes.Node(first),
        nodes.Node(second, env=same),
        nodes.Node(second, env=changed),
        nodes.Node(first, env=changed),
    ]
    try:
        installed, as_published, anew, anew_first = (node.wait_ready().address for node in started)
        asyncio.run(try_chain(installed, as_published))
        asyncio.run(try_chain(anew_first, anew))
        with pytest.raises(HandshakeError, match="parts of different models") as refused:
            asyncio.run(try_chain(installed, anew))
        assert OTHER in refused.value.why
        assert version("mlx-lm") in refused.value.why
    finally:
        nodes.stop_all(started)


@pytest.mark.parametrize("case", list(REFUSED))
def test_stage_with_another_graph_under_this_version_is_refused(case: str, made: Path, upstream: Upstream) -> None:
    """A stage whose graph differs is refused before a weight is loaded, with both versions and what to do."""
    changes, what = REFUSED[case]
    env = upstream(is_there=False) if changes is None else upstream(*changes)
    served = nodes.shardhub("serve", made / "m-shard-1", "--port", 0, env=env)
    assert served.returncode not in (0, 70)
    assert what in served.stderr
    assert f"was split with mlx {version('mlx')} and mlx-lm {version('mlx-lm')}" in served.stderr
    assert f"this machine has mlx {version('mlx')} and mlx-lm {OTHER}" in served.stderr
    assert f"mlx-lm=={version('mlx-lm')}" in served.stderr
    assert "loading" not in served.stderr


@pytest.mark.parametrize("is_there", [True, False])
def test_verify_tells_unproven_from_wrong(is_there: bool, made: Path, upstream: Upstream) -> None:
    """Under a version in which the split does not hold, verify still confirms the published bytes."""
    env = upstream(RESIDUAL) if is_there else upstream(is_there=False)
    verified = nodes.shardhub("verify", made / "m-pipeline", env=env)
    assert verified.returncode == 1
    wrong = [line for line in verified.stdout.splitlines() if not line.startswith("ok ")]
    assert wrong[0].startswith("UNPROVEN  graph")
    assert f"mlx-lm {OTHER}" in verified.stdout
    assert "NOT PROVEN" in verified.stdout.splitlines()[-1]
    assert "MISMATCH" not in verified.stdout

"""`--blas` in processes of their own, since pytest's process keeps MLX's reference BLAS."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from shardhub.blas import Blas, carries_reference_blas, default_threads, load_openblas, use_blas
from shardhub.engine.host import host_facts
from shardhub.errors import ShardhubError
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire import shardhub_pb2_grpc as stubs
from tests import cut, nodes
from tests.selection import variants

pytestmark = pytest.mark.skipif(not carries_reference_blas(), reason="MLX is no CPU wheel for Linux")

# What the wheel of OpenBLAS was built for.
MOST_THREADS = 64
# What a program says of itself: its BLAS, and whether products and decompositions hold.
_PROGRAM = """
import json, os, sys
from shardhub.blas import Blas, blas_path, use_blas
use_blas(Blas(sys.argv[1]))
import mlx.core as mx
from shardhub.engine.host import host_facts
with mx.stream(mx.cpu):
    a = mx.random.normal((96, 96), key=mx.random.key(1))
    q, r = mx.linalg.qr(a)
    u, s, v = mx.linalg.svd(a)
    w, e = mx.linalg.eigh(a @ a.T)
    c = mx.linalg.cholesky(a @ a.T + mx.eye(96))
    pairs = [(q @ r, a), ((u * s) @ v, a), ((e * w) @ e.T, a @ a.T), (c @ c.T, a @ a.T + mx.eye(96))]
    pairs += [(mx.linalg.inv(a) @ a, mx.eye(96))]
    z = a + 1j * a.T
    pairs += [(mx.real(z @ z), a @ a - a.T @ a.T)]
    errors = [mx.abs(found - expected).max().item() for found, expected in pairs]
print(json.dumps({
    "blas": host_facts()["blas"], "path": blas_path(mx.__file__), "errors": errors,
    "threads": os.environ.get("OPENBLAS_NUM_THREADS"), "digits": (a @ a).sum().item(),
}))
"""


def program(choice: str, **env: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, choice], capture_output=True, text=True, check=True, env={**os.environ, **env}
    )
    assert done.stderr == ""
    said: dict[str, object] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def openblas() -> dict[str, object]:
    """The library that `auto` reports; skips where no OpenBLAS can be loaded."""
    load = "from shardhub.blas import load_openblas; load_openblas()"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no OpenBLAS can be loaded: {done.stderr.splitlines()[-1]}")
    return program("auto")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, tiny_tokenizer):
    model = cut.tiny_model(tmp_path_factory.mktemp("blas") / "model")
    tiny_tokenizer(model)
    return cut.cut(model, tmp_path_factory.mktemp("blas-out"), (2,))


def host_of(address: str) -> dict[str, str]:
    """The host that a node reports."""

    async def describe() -> dict[str, str]:
        async with grpc.aio.insecure_channel(address) as channel:
            return dict((await stubs.NodeStub(channel).Describe(pb.DescribeRequest(), timeout=10)).host)

    return asyncio.run(describe())


def test_auto_computes_with_openblas(openblas: dict[str, object]) -> None:
    """With `auto`, OpenBLAS is loaded into the process, and products and LAPACK results are right."""
    assert "openblas" in Path(str(openblas["path"])).name
    assert Path(str(openblas["path"])).name in str(openblas["blas"])
    assert f", {min(default_threads(), MOST_THREADS)} thread" in str(openblas["blas"])
    assert max(openblas["errors"]) < 2e-3


def test_reference_computes_with_the_wheel_of_mlx() -> None:
    said = program("reference")
    assert str(said["blas"]).startswith("libblas-")
    assert "mlx_cpu.libs" in str(said["path"])
    assert max(said["errors"]) < 2e-3


def test_tests_run_under_reference_blas() -> None:
    """Tests compare exactly within one numeric class, under the library that does not choose kernels by machine."""
    assert host_facts()["blas"].startswith("libblas-")
    assert os.environ["SHARDHUB_BLAS"] == "reference"


def test_blas_name_does_not_depend_on_numpy(openblas: dict[str, object]) -> None:
    """numpy brings an OpenBLAS of its own into the process, which does not change the reported name."""
    import numpy as np

    assert np.ones(2).sum() == 2
    assert "scipy_openblas64" not in host_facts()["blas"]


def test_number_of_threads_is_the_users(openblas: dict[str, object]) -> None:
    """A number of threads in the environment is kept; without one none is set for other libraries."""
    assert openblas["threads"] is None
    assert "1 thread)" in str(program("auto", OPENBLAS_NUM_THREADS="1")["blas"])
    assert "1 thread)" in str(program("auto", OMP_NUM_THREADS="1")["blas"])


def test_threads_follow_affinity(openblas: dict[str, object]) -> None:
    """A process pinned to one processor counts one core and starts one thread."""
    pinned = f"import os, sys; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n{_PROGRAM}"
    done = subprocess.run([sys.executable, "-c", pinned, "auto"], capture_output=True, text=True, check=True)
    assert "1 thread)" in json.loads(done.stdout)["blas"]


def test_openblas_after_mlx_is_refused() -> None:
    """OpenBLAS must be chosen before MLX is imported: a later choice is refused, as it would have no effect."""
    use_blas(Blas.AUTO)
    with pytest.raises(ShardhubError, match="too late to load OpenBLAS"):
        use_blas(Blas.OPENBLAS)
    with pytest.raises(ShardhubError, match="too late to load OpenBLAS"):
        load_openblas()


def test_missing_openblas_is_reference_for_auto_and_an_error_by_name(
    tmp_path: Path, openblas: dict[str, object]
) -> None:
    """Without a compiler and a system library, `auto` uses the reference BLAS, and `openblas` is refused."""
    alone = {"PATH": str(tmp_path)}
    said = program("auto", **alone)
    if not str(said["blas"]).startswith("libblas-"):
        pytest.skip("this system has an OpenBLAS of its own")
    result = nodes.shardhub("serve", "x", "--blas", "openblas", env=alone)
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == "Error: OpenBLAS could not be loaded."
    assert "g++" in result.stderr
    assert "apt-get install libopenblas0" in result.stderr


@pytest.mark.parametrize("how", variants(["option", "environment", "auto"]))
def test_serve_reports_the_blas_it_computes_with(how: str, pipeline, openblas: dict[str, object]) -> None:
    """`serve` reports OpenBLAS where it is chosen or available, and the reference BLAS where that is requested."""
    expected = {"option": openblas["blas"], "environment": "libblas-", "auto": openblas["blas"]}[how]
    options = ("--blas", "openblas") if how == "option" else ()
    env = {"SHARDHUB_BLAS": {"option": "reference", "environment": "reference", "auto": "auto"}[how]}
    node = nodes.Node(cut.shard_folder(pipeline, 0), options=options, env=env)
    try:
        node.wait_ready()
        assert host_of(node.address)["blas"].startswith(str(expected))
        assert "blas" not in node.errors().lower()
    finally:
        nodes.stop_all([node])


def test_generate_computes_alike_under_each_blas(pipeline, openblas: dict[str, object]) -> None:
    """Stages in the calling process give the same answer under each BLAS; only --debug names it."""
    common = ("generate", pipeline.folder, "--prompt", "hi", "--max-tokens", 4, "--raw")
    fast = nodes.shardhub(*common, "--blas", "openblas", "--debug")
    assert fast.returncode == 0, fast.stderr
    assert f"BLAS: {openblas['blas']}" in fast.stderr
    slow = nodes.shardhub(*common, "--blas", "reference", "--debug")
    assert slow.returncode == 0, slow.stderr
    assert "BLAS: MLX's own" in slow.stderr
    quiet = nodes.shardhub(*common, env={"SHARDHUB_BLAS": "auto"})
    assert quiet.returncode == 0, quiet.stderr
    assert "blas" not in quiet.stderr.lower()
    assert fast.stdout.strip() == quiet.stdout.strip()


@pytest.mark.parametrize(("choice", "name"), [("auto", "openblas"), ("reference", "libblas-")])
def test_doctor_says_which_blas_is_used(choice: str, name: str, openblas: dict[str, object]) -> None:
    env = {"SHARDHUB_BLAS": choice, "HF_HUB_OFFLINE": "1"}
    result = nodes.shardhub("doctor", "--json", env=env)
    (check,) = [check for check in json.loads(result.stdout)["checks"] if check["name"] == "blas"]
    assert check["state"] == "ok"
    assert name in check["found"]


def test_unknown_blas_is_a_usage_error() -> None:
    result = nodes.shardhub("serve", "x", "--blas", "mkl")
    assert result.returncode == 2
    assert "openblas" in result.stderr

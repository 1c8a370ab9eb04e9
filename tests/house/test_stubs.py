"""The committed gRPC stubs are what the proto file generates."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STUBS = {"shardhub_pb2.py", "shardhub_pb2.pyi", "shardhub_pb2_grpc.py"}


def test_stubs_are_fresh(tmp_path: Path) -> None:
    """Generating again with the pinned grpcio-tools gives the committed bytes."""
    assert version("grpcio-tools") == "1.76.0", "stubs are generated with the version pinned in the dev extra"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Ishardhub/wire=protos"]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, "protos/shardhub.proto"], cwd=ROOT, check=True, capture_output=True)
    generated = {path.name: path.read_bytes() for path in (tmp_path / "shardhub" / "wire").iterdir()}
    assert set(generated) == STUBS
    for name, content in generated.items():
        assert (ROOT / "shardhub" / "wire" / name).read_bytes() == content, f"{name} is stale"

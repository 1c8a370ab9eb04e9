"""Random requests derived from the gateway's own OpenAPI file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.serving import GatewayProcess

COMMAND = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
CHECKS = "not_a_server_error,content_type_conformance,status_code_conformance,response_schema_conformance"

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(COMMAND is None, reason="schemathesis is not installed: pip install 'shardhub[clients]'"),
]


@pytest.mark.timeout(900)
def test_no_request_is_more_than_the_gateway_can_answer(served, tmp_path) -> None:
    """Any request that matches the file, or nearly, gets a documented answer and never a server error."""
    gateway = GatewayProcess(served.pipeline, served.addresses, ("--max-tokens", "8"))
    command = [COMMAND, "run", f"{gateway.url}/openapi.json", "--checks", CHECKS, "--no-color", "--seed", "1"]
    options = ["--max-examples", "20", "--exclude-path", "/shardhub/events", "--request-timeout", "60"]
    try:
        done = subprocess.run(
            [*command, *options, "--phases", "examples,coverage,fuzzing"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-4000:]
    finally:
        assert gateway.stop() == 0

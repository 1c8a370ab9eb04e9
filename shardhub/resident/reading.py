"""Reading weight files of a plain model that is cut for a cluster: in a process of its own, while somebody listens."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Annotated, Literal

from pydantic import Field

from shardhub.errors import NodeFailure
from shardhub.manifest import MAX_FILES, Digest, decode, encode
from shardhub.resident.machine import Report
from shardhub.resident.records import Failure, Text
from shardhub.splitting.file_order import FileOrder

# A report with the sha256 of the most files.
MAX_REPORT_BYTES = 16 << 20
_COMMAND = ("-m", "shardhub", "resident", "read-files")


class ReadReport(Report):
    """How far a reading is.

    Attributes:
        doing: What is read, for people.
        done_bytes, total_bytes: Of what was not in the cache.
        digests: In the end, the sha256 of the files by their keys.
        failure: What it ended with instead.
    """

    kind: Literal["shardhub-read-report"] = "shardhub-read-report"
    format_version: Literal[1] = 1
    doing: Text = ""
    done_bytes: Annotated[int, Field(ge=0)] = 0
    total_bytes: Annotated[int, Field(ge=0)] = 0
    digests: Annotated[dict[Digest, Digest], Field(max_length=MAX_FILES)] | None = None
    failure: Failure | None = None


async def read_files(
    order: FileOrder, environment: Mapping[str, str] | None = None
) -> AsyncGenerator[ReadReport, None]:
    """Read the files of an order into this machine's cache; the last report has their sha256.

    Whoever stops listening ends the reading. What is in the cache by then stays there.

    Args:
        environment: Of the process that reads; None takes this one's.

    Raises:
        ShardhubError: It failed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *_COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_REPORT_BYTES,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(ConnectionError):
            process.stdin.write(encode(order))
            await process.stdin.drain()
            process.stdin.close()
        while line := await process.stdout.readline():
            report = decode(ReadReport, line, where="`shardhub resident read-files`", limit_bytes=MAX_REPORT_BYTES)
            if report.failure is not None:
                raise report.failure.as_error()
            yield report
            if report.digests is not None:
                return
        raise NodeFailure(
            "Reading weight files ended before they were there.",
            why=f"Its process ended with {await process.wait()}.",
            hint="Bring the model up again: what was read is kept.",
        )
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

"""Strangers at the authority's desk, over real sockets: those that hold connections, and those that send much."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl

from shardhub.security.certificates import Role
from shardhub.security.desk import MAX_CONNECTIONS, MAX_REQUEST_BYTES, Desk
from shardhub.security.invite import InviteLine
from shardhub.security.joining import Wish, join
from shardhub.security.open_invites import OpenInvites
from tests.security.cluster import NOW, Cluster
from tests.security.loop import in_loop
from tests.waiting import until


@contextlib.asynccontextmanager
async def open_desk(cluster: Cluster):
    """A desk, its port, and a line with which machines join."""
    invites = OpenInvites(cluster.authority.folder, clock=lambda: NOW)
    desk = Desk(cluster.authority, clock=lambda: NOW, invites=invites)
    port = await desk.start("127.0.0.1", 0)
    secret = invites.make(Role.MEMBER, dt.timedelta(hours=1))
    line = InviteLine(address=f"127.0.0.1:{port}", fingerprint=cluster.authority.fingerprint, secret=secret)
    try:
        yield port, line
    finally:
        await desk.stop()


@in_loop
async def test_strangers_hold_a_limited_number_of_connections(tmp_path):
    """Of hundreds that say nothing, also before TLS, most are closed at once; a machine joins after they are gone."""
    cluster = Cluster(tmp_path / "cluster", desk="127.0.0.1:50049")
    async with open_desk(cluster) as (port, line):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3 * MAX_CONNECTIONS)]
        ended: set[int] = set()

        async def notice(at: int) -> None:
            with contextlib.suppress(OSError):
                await silent[at][0].read()
            ended.add(at)

        noticing = [asyncio.create_task(notice(at)) for at in range(len(silent))]

        async def most_are_closed() -> bool:
            return len(ended) >= 2 * MAX_CONNECTIONS

        await until(most_are_closed)
        assert len(ended) == 2 * MAX_CONNECTIONS
        for _, writer in silent:
            writer.transport.abort()
        await asyncio.gather(*noticing)
        joined = []

        async def has_joined() -> bool:
            with contextlib.suppress(Exception):
                joined.append(await join(line, tmp_path / "mini", Wish(name="mini")))
            return bool(joined)

        await until(has_joined)
        assert joined[0].peer.name == "mini"


@in_loop
async def test_a_request_that_is_too_large_is_not_answered(tmp_path):
    """The desk reads no more than a request may have, and closes the connection."""
    cluster = Cluster(tmp_path / "cluster", desk="127.0.0.1:50049")
    async with open_desk(cluster) as (port, _):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        answers = []
        for size in (100, 4 * MAX_REQUEST_BYTES):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            with contextlib.suppress(OSError):
                writer.write(b'{"ask": "authority", "more": "' + b"x" * size + b'"}\n')
                await writer.drain()
            answer = b""
            with contextlib.suppress(OSError):
                answer = await reader.readline()
            answers.append(answer)
            writer.transport.abort()
        assert b"BEGIN CERTIFICATE" in answers[0]
        assert answers[1] == b""

"""Upkeep of a running process's certificates: re-reads them, renews them, fetches revocations."""

from __future__ import annotations

import asyncio
import logging
import os

from shardhub.errors import IdentityError, ShardhubError
from shardhub.security.identity import load_desk
from shardhub.security.joining import hear_revocations, renew
from shardhub.security.trust import Trust

log = logging.getLogger(__name__)

# Interval at which files are checked for changes.
REREAD_S = 2.0
# Interval at which the desk is asked for revocations; each request costs it a handshake.
ASK_S = 10.0
_WARN_EVERY_S = 86_400.0


async def keep(trust: Trust, *, reread_s: float = REREAD_S, ask_s: float = ASK_S) -> None:
    """Keep an identity up to date until cancelled; failures are logged, and the current one is kept."""
    loop = asyncio.get_running_loop()
    asked_at, warned_at = float("-inf"), float("-inf")
    while True:
        trust.reread()
        if loop.time() - asked_at >= ask_s:
            try:
                await ask_desk(trust)
            except ShardhubError as error:
                log.info("%s", error)
                if trust.identity.is_due(trust.clock()) and loop.time() - warned_at >= _WARN_EVERY_S:
                    warned_at = loop.time()
                    log.warning(
                        "the certificate of %s expires on %s and could not be renewed: %s",
                        trust.identity.peer,
                        f"{trust.identity.peer.not_after:%F}",
                        error,
                    )
            asked_at = loop.time()
        await asyncio.sleep(reread_s)


async def ask_desk(trust: Trust) -> None:
    """Renew the certificate if that is due; otherwise fetch the revocation list.

    Raises:
        ShardhubError: The authority does not answer, or refuses.
        IdentityError: The renewal is due, and the folder is read-only: whoever fills it has to replace the certificate.
    """
    address = load_desk(trust.folder)
    is_due, can_store = trust.identity.is_due(trust.clock()), os.access(trust.folder, os.W_OK)
    if address is not None and not (is_due and can_store):
        await hear_revocations(trust, address)
    if is_due and not can_store:
        raise IdentityError(
            f"{trust.folder} is read-only.",
            why="A renewed certificate cannot be stored there.",
            hint="Replace its files.",
        )
    if is_due and address is not None:
        await renew(trust, address)
        log.info("the certificate of %s was renewed", trust.identity.peer)

"""Upkeep of a running process's certificates: re-reads them, renews them, fetches revocations."""

from __future__ import annotations

import asyncio
import logging

from shardhub.errors import ShardhubError
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
    """
    address = load_desk(trust.folder)
    if address is None:
        return
    if trust.identity.is_due(trust.clock()):
        await renew(trust, address)
        log.info("the certificate of %s was renewed", trust.identity.peer)
    else:
        await hear_revocations(trust, address)

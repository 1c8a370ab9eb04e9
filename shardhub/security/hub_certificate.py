"""A Hub's certificate while the Hub is served: renewed in time, and used by new connections without a restart."""

from __future__ import annotations

import datetime as dt
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from shardhub.errors import IdentityError, ShardhubError
from shardhub.security.certificates import Role, hosts_of, load_certificate
from shardhub.security.identity import Identity, identity_file, load_identity
from shardhub.security.trust import utc_now

log = logging.getLogger(__name__)


class HubCertificate:
    """The certificate of a Hub, and the TLS context that shows it.

    Args:
        folder: This machine's folder of certificates.
        hosts: Returns the host names and addresses by which clients call the Hub, which may change.
        issue: Has the Hub certified for hosts, and stores the certificate in the folder.
        clock: Returns the current time.

    Raises:
        ShardhubError: There is no certificate that can be used, and none can be issued.

    Attributes:
        context: TLS of the server.
        identity: The certificate in use.
    """

    identity: Identity

    def __init__(
        self,
        folder: Path,
        *,
        hosts: Callable[[], frozenset[str]],
        issue: Callable[[frozenset[str]], object],
        clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self._folder = folder
        self._hosts = hosts
        self._issue = issue
        self._clock = clock
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.refresh()
        self.apply()

    @property
    def hosts(self) -> frozenset[str]:
        """The host names and addresses that the certificate carries."""
        return hosts_of(load_certificate(self.identity.chain_pem))

    def refresh(self) -> None:
        """Have a new certificate issued if the present one is due or lacks a host; keep a usable one if that fails.

        Raises:
            ShardhubError: No certificate can be used, and none can be issued.
        """
        hosts = self._hosts()
        present = self._load()
        if present is None or present.is_due(self._clock()) or hosts - hosts_of(load_certificate(present.chain_pem)):
            try:
                self._issue(hosts)
            except ShardhubError as error:
                if present is None or hosts - hosts_of(load_certificate(present.chain_pem)):
                    raise
                log.warning("the certificate of %s could not be renewed: %s", present.peer, error)
            present = load_identity(self._folder, Role.HUB, now=self._clock())
        self.identity = present

    def apply(self) -> None:
        """Show the newest certificate to new connections; called where these are made, as a context is not locked."""
        self.context.load_cert_chain(self.identity.path)

    def _load(self) -> Identity | None:
        """The stored certificate, if there is one that can be used."""
        if not identity_file(self._folder, Role.HUB).exists():
            return None
        try:
            return load_identity(self._folder, Role.HUB, now=self._clock())
        except IdentityError as error:
            log.info("%s", error)
            return None

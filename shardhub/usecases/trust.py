"""The choice of certificates, and the folders that hold them."""

from __future__ import annotations

from pathlib import Path

from shardhub.errors import IdentityError, ShardhubError, UsageError
from shardhub.security.certificates import MACHINE_ROLES, Role
from shardhub.security.folders import default_folder, named_folder
from shardhub.security.identity import has_identity
from shardhub.security.trust import PLAIN, Security, Trust
from shardhub.usecases.watcher import SILENT, Watcher


def head_security(
    tls: str | Path | None, *, insecure_lan: bool, flag: str = "`insecure_lan`", watcher: Watcher = SILENT
) -> Security:
    """Decide how a head reaches its nodes: loopback without TLS, other machines with its certificate.

    Args:
        tls: Folder of certificates named by the user; if given, TLS is used on loopback too.
        flag: The option that set `insecure_lan`.
        watcher: Warned if links are open to others.

    Raises:
        UsageError: Both are given.
        IdentityError: The named or stored certificate cannot be used.
    """
    missing = None
    try:
        trust = _trust(named_certificates(tls, insecure_lan=insecure_lan), Role.HEAD, insecure_lan=insecure_lan)
    except IdentityError as error:
        if named_certificates(tls, insecure_lan=insecure_lan) is not None or has_identity(default_folder(), Role.HEAD):
            raise
        trust, missing = None, error  # the head may need none, for nodes of its own machine
    if insecure_lan:
        watcher.note(f"warning: {flag}: anyone on the network path to a node can read prompts and alter answers")
    return Security(
        trust=trust,
        everywhere=named_certificates(tls, insecure_lan=insecure_lan) is not None,
        insecure_lan=insecure_lan,
        insecure_flag=flag,
        missing=missing,
    )


def reader_security(watcher: Watcher = SILENT) -> Security:
    """Decide how a command reaches nodes only to be given weight files: with whichever certificate this machine has.

    Args:
        watcher: Told of a certificate that cannot be used: files come from the Hub then.
    """
    folder = named_folder()
    for role in (Role.NODE, Role.HEAD):
        if has_identity(folder or default_folder(), role):
            try:
                return Security(trust=_trust(folder, role, insecure_lan=False), everywhere=folder is not None)
            except ShardhubError as error:
                watcher.note(f"warning: nodes are asked for weight files without a certificate: {error}")
    return PLAIN


def node_trust(tls: str | Path | None, *, insecure_lan: bool, is_loopback: bool) -> Trust | None:
    """Decide the trust of a node; None serves without TLS.

    Args:
        tls: Folder of certificates named by the user.
        is_loopback: Whether it listens on loopback only, where only a named folder counts.

    Raises:
        UsageError, IdentityError: As `head_security`.
    """
    named = named_certificates(tls, insecure_lan=insecure_lan)
    if named is None and is_loopback:
        return None
    return _trust(named, Role.NODE, insecure_lan=insecure_lan)


def named_certificates(tls: str | Path | None, *, insecure_lan: bool) -> Path | None:
    """The folder of certificates that the user has named, as an option or in SHARDHUB_TLS; None for the default.

    Raises:
        UsageError: A folder is named although `insecure_lan` turns certificates off.
    """
    if tls is not None and insecure_lan:
        raise UsageError("`tls` and `insecure_lan` cannot be combined.", hint="Leave out `insecure_lan`.")
    if insecure_lan:
        return None
    return Path(tls) if tls else named_folder()


def _trust(named: Path | None, role: Role, *, insecure_lan: bool) -> Trust | None:
    if insecure_lan:
        return None
    folder = named or default_folder()
    if named is None and not any(has_identity(folder, other) for other in MACHINE_ROLES):
        return None
    return Trust(folder, role)

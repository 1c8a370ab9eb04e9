"""`shardhub certs` on any machine: join, renew, show; and keys that sign manifests."""

from __future__ import annotations

import asyncio
import datetime as dt
import getpass
import json
import os
import sys
from pathlib import Path
from typing import Any

from shardhub.cli.terminal import note
from shardhub.errors import ShardhubError, UsageError
from shardhub.security.authority import KEY_FILE, Authority
from shardhub.security.certificates import Role, fingerprint
from shardhub.security.identity import identity_file, load_desk, load_identity
from shardhub.security.invite import parse_invite
from shardhub.security.joining import join as join_cluster
from shardhub.security.joining import renew as renew_certificate
from shardhub.security.signatures import make_signing_key
from shardhub.security.trust import Trust, utc_now
from shardhub.usecases.trust import default_authority, default_folder

_MAX_LINE = 1024


def join(line: str | None, folder: Path | None, *, as_json: bool, debug: bool) -> int:
    """Join the cluster of an invitation line."""
    if line is not None and line != "-":
        _hide(line, folder, as_json=as_json, debug=debug)
    if line is None and sys.stdin.isatty():
        text = getpass.getpass("Invitation (not shown): ")
    else:
        text = sys.stdin.readline(_MAX_LINE)
    joined = asyncio.run(join_cluster(parse_invite(text), folder or default_folder()))
    if as_json:
        record = {"name": joined.peer.name, "role": joined.peer.role.value, "certificate": str(joined.path)}
        print(json.dumps({**record, "not_after": joined.peer.not_after.isoformat()}))
    else:
        print(joined.path)
        note(f"This machine is {joined.peer} until {joined.peer.not_after:%F}.")
    return 0


def renew(folder: Path | None, *, as_json: bool) -> int:
    """Renew this machine's certificates."""
    place = folder or default_folder()
    roles = [role for role in (Role.HEAD, Role.NODE) if identity_file(place, role).exists()]
    address = load_desk(place)
    if not roles or address is None:
        raise UsageError(
            f"{place} holds no certificate that can be renewed." if not roles else "Nobody renews certificates.",
            why="The authority was made without an address." if roles else "",
            hint="Join the cluster with `shardhub certs join`.",
        )
    renewed = []
    for role in roles:
        trust = Trust(place, role)
        asyncio.run(renew_certificate(trust, address))
        peer = trust.identity.peer
        renewed.append({"name": peer.name, "role": role.value, "not_after": peer.not_after.isoformat()})
        if not as_json:
            print(f"{peer}: until {peer.not_after:%F}")
    if as_json:
        print(json.dumps(renewed))
    return 0


def show(authority: Path | None, folder: Path | None, *, as_json: bool) -> int:
    """Show certificates: this machine's, and all those that an authority here has issued."""
    place, now = folder or default_folder(), utc_now()
    own = [_own(place, role, now) for role in (Role.HEAD, Role.NODE) if identity_file(place, role).exists()]
    record: dict[str, Any] = {"dir": str(place), "certificates": own, "authority": None}
    home = authority or default_authority()
    if (home / KEY_FILE).exists():
        opened = Authority.open(home)
        ledger = opened.ledger()
        record["authority"] = {
            "dir": str(home),
            "fingerprint": opened.fingerprint,
            "address": ledger.desk,
            "issued": [one.model_dump(mode="json") for one in ledger.issued],
        }
    if as_json:
        print(json.dumps(record))
        return 0
    for one in own:
        print(f"{place}: {one['role']} {one['name']}, " + (one["error"] or f"until {one['not_after'][:10]}"))
        if one["authority"]:
            print(f"  authority {one['authority']}")
    if not own:
        print(f"{place}: no certificates")
    if record["authority"]:
        print(f"{home}: authority {record['authority']['fingerprint']}, reached at {record['authority']['address']}")
        for entry in record["authority"]["issued"]:
            state = f"revoked {entry['revoked_at'][:10]}" if entry["revoked_at"] else f"until {entry['not_after'][:10]}"
            print(f"  {entry['role']} {entry['name']}: issued {entry['issued_at'][:10]}, {state}")
    return 0


def keygen(file: Path, *, as_json: bool) -> int:
    """Create a key that signs manifests."""
    signer = make_signing_key(file)
    if as_json:
        print(json.dumps({"private": str(file), "public": signer.public}))
    else:
        print(signer.public)
        note(f"The private key is in {file}: keep a copy. Publish {file}.pub where readers trust you.")
    return 0


def _own(place: Path, role: Role, now: dt.datetime) -> dict[str, Any]:
    try:
        identity = load_identity(place, role, now=now)
    except ShardhubError as error:
        return {"role": role.value, "name": "?", "not_after": None, "authority": None, "error": str(error)}
    return {
        "role": role.value,
        "name": identity.peer.name,
        "not_after": identity.peer.not_after.isoformat(),
        "authority": fingerprint(identity.authority),
        "error": None,
    }


def _hide(line: str, folder: Path | None, *, as_json: bool, debug: bool) -> None:
    """Restart with the line on stdin, as everyone on this machine can read an argument list."""
    reading, writing = os.pipe()
    os.write(writing, line.encode()[:_MAX_LINE] + b"\n")
    os.close(writing)
    os.dup2(reading, 0)
    options = [
        *(["--dir", str(folder)] if folder else []),
        *(["--json"] if as_json else []),
        *(["--debug"] if debug else []),
    ]
    os.execv(sys.executable, [sys.executable, "-m", "shardhub", "certs", "join", *options, "-"])  # noqa: S606

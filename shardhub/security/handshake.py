"""The first contact with a node: a TLS handshake that tells who it is, before anything is sent to it.

gRPC checks that a peer is *a* node of this cluster, but does not tell a client which one, or why a handshake failed. It
does not know revocations either. So a short connection of its own comes first; the channel then requires the host name
that only that node's certificates carry, so that no other node can take its place in between.
"""

from __future__ import annotations

import asyncio
import ssl

from cryptography import x509

from shardhub.address import Address
from shardhub.dialling import unreachable_hint
from shardhub.errors import AddressError, CertificateRefused, NodeUnreachable
from shardhub.security.certificates import NODE_HOST, Peer, peer_of
from shardhub.security.identity import Identity
from shardhub.security.trust import Trust

MEET_TIMEOUT_S = 10.0
# OpenSSL's verify codes.
_NOT_YET_VALID, _EXPIRED = 9, 10
_NOT_A_NODE = {26, 62}  # purpose, host name


async def meet(address: str, trust: Trust, *, timeout_s: float = MEET_TIMEOUT_S) -> Peer:
    """Return who answers at HOST:PORT, by its certificate.

    Raises:
        CertificateRefused: The other side is not a node of this cluster, is revoked, does not speak TLS, or refuses our
            certificate.
        NodeUnreachable: Nothing answers.
    """
    at = Address.parse(address)
    context = client_context(trust.identity)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(at.host, at.port, ssl=context, server_hostname=NODE_HOST)
            try:
                peer = peer_of(x509.load_der_x509_certificate(_certificate(writer)))
                trust.check(peer)
                # In TLS 1.3 a server checks our certificate last: it sends data first only if it accepts it.
                if not await reader.read(1):
                    raise _we_are_refused(address, trust, peer)
            except (ConnectionError, ssl.SSLError) as error:
                raise _we_are_refused(address, trust, peer) from error
            finally:
                # Abort instead of closing: gRPC does not answer a TLS close, and waiting for it took the whole timeout.
                writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        raise CertificateRefused(
            f"{address} presented a certificate that cannot be trusted.",
            why=_why_not(error),
            hint="Nothing was sent to it. Check the address, and that the machine belongs to this cluster.",
        ) from error
    except ssl.SSLError as error:
        raise CertificateRefused(
            f"{address} does not speak TLS.",
            why="It did not answer the handshake in TLS.",
            hint="Nothing was sent to it. Start the node with `tls`, or leave out `tls` here.",
        ) from error
    except TimeoutError as error:
        raise NodeUnreachable(
            f"{address} did not answer within {timeout_s:.0f} s.", why="This was a TLS handshake."
        ) from error
    except (OSError, ValueError) as error:
        raise NodeUnreachable(
            f"No node answers at {address}.",
            why=f"{error}.",
            hint=unreachable_hint(f"{error}"),
        ) from error
    return peer


async def speaks_tls(address: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a TLS handshake is answered at an address; for the hint of an error."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # who it is does not matter here
    context.set_alpn_protocols(["h2"])
    try:
        at = Address.parse(address)
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(at.host, at.port, ssl=context)
            writer.transport.abort()
    except (AddressError, OSError, ValueError, TimeoutError, EOFError):
        return False
    return True


def client_context(identity: Identity) -> ssl.SSLContext:
    """Make a client's TLS context with this machine's certificate, which trusts its authority only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=identity.authority_pem.decode())
    context.load_cert_chain(identity.path)
    context.set_alpn_protocols(["h2"])
    return context


def _certificate(writer: asyncio.StreamWriter) -> bytes:
    data: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    if data is None:  # cannot happen: the handshake requires a certificate
        raise CertificateRefused("The other side presented no certificate.")
    return data


def _we_are_refused(address: str, trust: Trust, peer: Peer) -> CertificateRefused:
    return CertificateRefused(
        f"{address} does not accept this machine's certificate.",
        why=f"It is {peer}, and this machine is {trust.identity.peer}. Its clock may be wrong, or it may belong to "
        "another authority.",
        hint="Compare `shardhub certs show` on both machines.",
    )


def _why_not(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return "It has expired (or this machine's clock is wrong)."
    if error.verify_code == _NOT_YET_VALID:
        return "It is not valid yet: one of the two clocks is wrong."
    if error.verify_code in _NOT_A_NODE:
        return "It is not the certificate of a node."
    return f"It was not issued by this cluster's authority ({error.verify_message})."

"""Signed manifests: made by split and push, required by readers."""

from __future__ import annotations

import stat

import pytest

from shardhub.errors import IdentityError, SignatureError, UsageError
from shardhub.manifest import decode, encode
from shardhub.naming import MANIFEST_FILE, SIGNATURE_FILE
from shardhub.security.signatures import (
    Signature,
    check_signature,
    check_unchanged,
    load_signer,
    make_signing_key,
    parse_public_key,
)
from shardhub.shard import read_pipeline
from tests import cut


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline's folder, and two keys."""
    folder = tmp_path_factory.mktemp("signed")
    pipeline = cut.cut(cut.tiny_model(folder / "model"), folder / "out", (3,))
    return pipeline.folder, make_signing_key(folder / "key"), make_signing_key(folder / "other")


@pytest.fixture
def signed(made):
    folder, signer, other = made
    (folder / SIGNATURE_FILE).write_bytes(signer.sign((folder / MANIFEST_FILE).read_bytes()))
    before = (folder / MANIFEST_FILE).read_bytes()
    yield folder, signer, other
    (folder / MANIFEST_FILE).write_bytes(before)


def test_a_signed_pipeline_is_let_through(signed):
    """A pipeline passes if the required key signed it; its content and id are unchanged."""
    folder, signer, _ = signed
    check_signature(folder, signer.public)
    check_unchanged(folder)
    pipeline = read_pipeline(folder)
    assert SIGNATURE_FILE not in pipeline.manifest.files


def test_a_changed_manifest_is_refused(signed):
    """A change of any byte of the manifest is detected, even if the manifest stays valid."""
    folder, signer, _ = signed
    data = (folder / MANIFEST_FILE).read_bytes()
    (folder / MANIFEST_FILE).write_bytes(data.replace(b'"name":"m"', b'"name":"n"'))
    assert (folder / MANIFEST_FILE).read_bytes() != data
    assert read_pipeline(folder).manifest.name == "n"
    for check in (lambda: check_signature(folder, signer.public), lambda: check_unchanged(folder)):
        with pytest.raises(SignatureError, match="is wrong"):
            check()


def test_another_key_is_refused(signed):
    """A valid signature by another key is refused."""
    folder, _, other = signed
    with pytest.raises(SignatureError, match="another key"):
        check_signature(folder, other.public)


def test_a_borrowed_name_is_refused(signed):
    """A signature that names the required key but was made with another is refused."""
    folder, signer, other = signed
    forged = decode(Signature, other.sign((folder / MANIFEST_FILE).read_bytes()), where="x")
    (folder / SIGNATURE_FILE).write_bytes(encode(forged.model_copy(update={"key": signer.public})))
    with pytest.raises(SignatureError, match="is wrong"):
        check_signature(folder, signer.public)


def test_a_missing_signature_is_refused(signed):
    """Where a signature is required, an unsigned pipeline is refused."""
    folder, signer, _ = signed
    (folder / SIGNATURE_FILE).unlink()
    with pytest.raises(SignatureError, match="not signed"):
        check_signature(folder, signer.public)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 5000, b'{"kind":"shardhub-signature"}', bytes(5000)])
def test_a_broken_signature_is_refused(signed, data):
    """A malformed signature file is refused as malformed."""
    folder, signer, _ = signed
    (folder / SIGNATURE_FILE).write_bytes(data)
    with pytest.raises(SignatureError, match="not a signature"):
        check_signature(folder, signer.public)


def test_a_signature_is_over_a_manifest_and_nothing_else(signed):
    """A signature by the same key over the same bytes without our context is refused."""
    folder, signer, _ = signed
    import base64

    raw = base64.b64encode(signer._key.sign((folder / MANIFEST_FILE).read_bytes())).decode()
    (folder / SIGNATURE_FILE).write_bytes(encode(Signature(key=signer.public, signature=raw)))
    with pytest.raises(SignatureError, match="is wrong"):
        check_signature(folder, signer.public)


def test_keys_are_kept_private_and_are_not_replaced(tmp_path):
    """A private key is created private, is refused if other users can read it, and is not overwritten."""
    signer = make_signing_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert load_signer(tmp_path / "key").public == signer.public
    assert parse_public_key(str(tmp_path / "key.pub")) == parse_public_key(signer.public) == signer.public
    with pytest.raises(UsageError, match="already exists"):
        make_signing_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(IdentityError, match="other users can read it"):
        load_signer(tmp_path / "key")


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:" + "A" * 44, "rsa:x", "nowhere.pub", "\0"])
def test_malformed_public_key_is_refused(text):
    """A malformed public key is a usage error, not a failed signature."""
    with pytest.raises(UsageError, match="not a public key"):
        parse_public_key(text)


def test_a_private_key_in_the_wrong_place_is_not_shown(tmp_path):
    """A private key given as the public one, or a wrong file as private key, is not quoted in the error."""
    make_signing_key(tmp_path / "key")
    secret = (tmp_path / "key").read_text().splitlines()[1]
    with pytest.raises(UsageError) as caught:
        parse_public_key(str(tmp_path / "key"))
    assert secret not in str(caught.value)
    (tmp_path / "broken").write_text((tmp_path / "key").read_text()[:-20])
    (tmp_path / "broken").chmod(0o600)
    with pytest.raises(IdentityError) as broken:
        load_signer(tmp_path / "broken")
    assert secret not in str(broken.value)
    assert broken.value.__cause__ is None

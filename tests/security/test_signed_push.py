"""The signature of a pushed pipeline: pushed with its manifest, replaced with it, and fetched with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardhub.errors import SignatureError
from shardhub.hub.cache import Cache
from shardhub.hub.fetch import Fetcher
from shardhub.hub.publish import publish
from shardhub.hub.push_decisions import Action
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.push_plan import plan_push
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference
from shardhub.security.signatures import check_signature, make_signing_key
from tests.checkpoints import write_checkpoint
from tests.hub.pushing import OVER_LFS, Pusher, pushing_hub

pytestmark = OVER_LFS


def test_a_push_signs_what_it_publishes(tmp_path):
    """A push adds a signature to its manifest, also to an unsigned one on the Hub, and never leaves an outdated one."""
    write_checkpoint(tmp_path / "model", 4, rows=64, tied=False)
    signer, other = (make_signing_key(tmp_path / name) for name in ("key", "other"))
    with pushing_hub(tmp_path / "hub") as (running, _):
        ann = Pusher(running, tmp_path / "cache")
        fetcher = Fetcher(lambda: ann.api, Cache(tmp_path / "fetched"), patience=Patience(notice=lambda text: None))

        def push(cuts, key, **options):
            journal = PushJournal(ann.cache)
            job = replace(ann.job(tmp_path / "model", cuts), signer=key)
            return publish(plan_push(job, ann.calls, journal, **options), ann.calls, journal, ann.cache).pipeline

        def fetched(pipeline):
            return fetcher.fetch(Reference(repo=pipeline.repo, revision=pipeline.commit))

        unsigned = push([2], None)
        with pytest.raises(SignatureError, match="not signed"):
            check_signature(fetched(unsigned), signer.public)
        signed = push([2], signer)
        assert signed.commit != unsigned.commit
        check_signature(fetched(signed), signer.public)
        again = push([2], signer)
        assert (again.action, again.commit) == (Action.KEEP, signed.commit)
        unchanged = push([2], None)
        assert unchanged.commit == signed.commit
        resigned = push([2], other)
        with pytest.raises(SignatureError, match="another key"):
            check_signature(fetched(resigned), signer.public)
        replaced = push([1, 3], None, replace=True)
        with pytest.raises(SignatureError, match="not signed"):
            check_signature(fetched(replaced), signer.public)
        check_signature(fetched(signed), signer.public)

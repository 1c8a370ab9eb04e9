"""Mutants: known defects inserted into the product, each of which the simulation must detect.

python -m tests.simulation.mutants --help
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from tests.simulation.mutant import ROOT, Mutant, hunt

_CHAIN, _ENGINE, _NODE = "shardhub/chain", "shardhub/engine", "shardhub/node"
DOCUMENT = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- written by tests/simulation/mutants.py -->", "<!-- until here, the mutants -->"

MUTANTS: tuple[Mutant, ...] = (
    # Sessions on a node.
    Mutant(
        name="old-step-runs",
        what="A node runs a step of an epoch that was fenced.",
        path=f"{_ENGINE}/sessions.py",
        old="if row.epoch != entry.epoch:",
        new="if row.epoch > entry.epoch:",
        seed=29,
    ),
    Mutant(
        name="open-does-not-rewind",
        what="The next epoch of a session leaves it at the position where it was.",
        path=f"{_ENGINE}/sessions.py",
        old="entry.session.rewind(call.position)",
        new="pass",
        seed=3,
    ),
    Mutant(
        name="open-keeps-the-hop",
        what="The next epoch of a session goes on to the node that came after it before.",
        path=f"{_ENGINE}/sessions.py",
        old="entry.next_hop = call.next_hop",
        new="pass",
        seed=12,
    ),
    Mutant(
        name="room-is-promised-twice",
        what="A node counts no memory that other sessions have reserved.",
        path=f"{_ENGINE}/sessions.py",
        old="free = self._kv_budget_bytes - sum(entry.reserved_bytes for entry in live)",
        new="free = self._kv_budget_bytes",
        seed=84,
    ),
    Mutant(
        name="parked-make-no-room",
        what="A node ends no parked session when a live one needs its memory.",
        path=f"{_ENGINE}/sessions.py",
        old="if needed <= free:\n                break",
        new="if needed:\n                break",
        seed=24,
    ),
    Mutant(
        name="parked-block-live",
        what="A node counts the memory of parked sessions as taken.",
        path=f"{_ENGINE}/sessions.py",
        old="free = self._kv_budget_bytes - sum(entry.reserved_bytes for entry in live)",
        new="free = self._kv_budget_bytes - self.reserved_bytes",
        seed=13,
    ),
    Mutant(
        name="lease-never-ends",
        what="A node keeps sessions whose lease has run out.",
        path=f"{_ENGINE}/sessions.py",
        old="if entry.lease_ends < now]",
        new="if entry.lease_ends < now - 1e6]",
        seed=5,
    ),
    Mutant(
        name="lease-of-parked-never-ends",
        what="A node keeps parked sessions whose lease has run out.",
        path=f"{_ENGINE}/sessions.py",
        old="if entry.lease_ends < now]",
        new="if entry.lease_ends < now and entry.parked_at is None]",
        seed=5,
    ),
    Mutant(
        name="renewal-renews-nothing",
        what="A node answers a renewal without extending the leases.",
        path=f"{_ENGINE}/sessions.py",
        old="gone.append(session)\n            else:\n                self.touch(entry)",
        new="gone.append(session)",
        seed=9,
    ),
    Mutant(
        name="close-frees-nothing",
        what="A node does not forget a session that is closed.",
        path=f"{_ENGINE}/sessions.py",
        old="if not park or not entry.session.position:\n            del self._entries[session]",
        new="if not park or not entry.session.position:\n            pass",
        seed=0,
    ),
    Mutant(
        name="claim-never-ends",
        what="A node keeps room for a head that is gone, for ever.",
        path=f"{_ENGINE}/claims.py",
        old="if claim.ends < now]",
        new="if claim.ends < now - 1e6]",
        seed=23,
    ),
    # A session's own bookkeeping on a stage.
    Mutant(
        name="fork-takes-all",
        what="A fork of a part of a session takes all of its KV.",
        path="shardhub/model/stage_session.py",
        old="other._copy(self, position)",
        new="other._copy(self, self.position)",
        seed=22,
    ),
    Mutant(
        name="rewind-keeps-ids",
        what="A session that is rewound still counts the ids it dropped.",
        path="shardhub/model/stage_session.py",
        old="        del self.ids[position:]\n",
        new="",
        seed=1,
    ),
    Mutant(
        name="rewind-keeps-kv",
        what="A session that is rewound keeps one position too many in its caches.",
        path="shardhub/model/stage_session.py",
        old="self._trim(self.position - position)",
        new="self._trim(max(1, self.position - position - 1))",
        seed=1,
    ),
    Mutant(
        name="reset-keeps-kv",
        what="A session that is reset keeps its caches.",
        path="shardhub/model/stage_session.py",
        old="        self._clear()\n",
        new="",
        seed=3,
    ),
    # Steps on a node.
    Mutant(
        name="discard-forgotten-by-the-node",
        what="A node does not drop wrong drafts before the next step.",
        path=f"{_ENGINE}/engine.py",
        old="                    session.rewind(row.position)\n",
        new="                    pass\n",
        seed=36,
    ),
    Mutant(
        name="masks-left-over",
        what="A node keeps masks of sessions that have ended.",
        path=f"{_ENGINE}/masks.py",
        old="                del self._masks[key]\n            late",
        new="                pass\n            late",
        seed=19,
    ),
    Mutant(
        name="mask-of-another-position",
        what="The head sends masks for the position before the draw.",
        path=f"{_CHAIN}/steps.py",
        old="at = sent.position + step.length",
        new="at = sent.position",
        seed=11,
    ),
    Mutant(
        name="late-masks-hold-steps",
        what="A node never gives up a step whose mask does not come.",
        path=f"{_ENGINE}/engine.py",
        old="self._masks.expire(self._sessions)",
        new="pass",
        seed=19,
    ),
    Mutant(
        name="fence-waits-its-turn",
        what="A fence runs after the steps that are queued, not before them.",
        path=f"{_ENGINE}/jobs.py",
        old="        if self._control:\n",
        new="        if self._control and not len(self):\n",
        seed=0,
    ),
    Mutant(
        name="queue-turns-round",
        what="A node runs the newest of a session's queued steps first.",
        path=f"{_ENGINE}/jobs.py",
        old="return self.queues[self._turn].popleft()",
        new="return self.queues[self._turn].pop()",
        seed=7,
    ),
    # What a node sends on.
    Mutant(
        name="failure-not-reported",
        what="A node does not report a failed step to the head.",
        path=f"{_NODE}/servicer.py",
        old="self._report_failure(head, outcome)",
        new="pass",
        seed=95,
    ),
    Mutant(
        name="links-of-a-head-stay",
        what="A node keeps its links to others for a head that is gone.",
        path=f"{_NODE}/peers.py",
        old="self._links.pop(key).stop()",
        new="pass",
        seed=0,
    ),
    Mutant(
        name="discard-lost-on-the-wire",
        what="A step's message does not say how many positions to drop.",
        path="shardhub/wire/codec.py",
        old="        discard=row.discard,\n        masked=row.masked,\n        targets=row.targets,\n",
        new="        masked=row.masked,\n        targets=row.targets,\n",
        seed=36,
    ),
    Mutant(
        name="position-0-lost-on-the-wire",
        what="An open call for position 0 arrives as one that keeps the stage's KV.",
        path="shardhub/wire/codec.py",
        old='position=message.position if message.HasField("position") else None,',
        new="position=message.position or None,",
        seed=3,
    ),
    # A head's sessions.
    Mutant(
        name="stages-at-different-positions",
        what="A session is resumed without moving all stages to one position.",
        path=f"{_CHAIN}/session.py",
        old="if any(o.position != target for o in opened):\n            try:",
        new="if any(o.position < target for o in opened):\n            try:",
        seed=3,
    ),
    Mutant(
        name="discard-forgotten-by-the-head",
        what="The head still counts wrong drafts as ids of the session.",
        path=f"{_CHAIN}/session.py",
        old="            del self.ids[-row.discard :]\n",
        new="",
        seed=1,
    ),
    Mutant(
        name="growth-forgets-shapes",
        what="A session that is forked does not know the shapes of the steps before.",
        path=f"{_CHAIN}/session.py",
        old="self.shapes = list(fork_of.shapes)",
        new="self.shapes = []",
        seed=3,
    ),
    Mutant(
        name="left-open-is-forgotten",
        what="A session that could not be closed on a lost node is not closed later.",
        path=f"{_CHAIN}/session.py",
        old="self._chain.left_open(link, self.id, self.epoch)\n            return False",
        new="pass\n            return False",
        seed=262,
    ),
    Mutant(
        name="moved-and-left-open",
        what="A session that moved to other nodes is not closed on those that it left.",
        path=f"{_CHAIN}/session.py",
        old="                self._chain.left_open(link, self.id, self.epoch)\n        self.path",
        new="                pass\n        self.path",
        seed=84,
    ),
    Mutant(
        name="heads-block-each-other",
        what="Heads open their sessions on all stages at once though nodes are full, and take each other's room.",
        path=f"{_CHAIN}/session.py",
        old="await (one_by_one if self._chain.is_full else all_of)(calls)",
        new="await all_of(calls)",
        seed=196,
    ),
    Mutant(
        name="closed-before-it-is-open",
        what="A session is closed at a node that has not opened it yet.",
        path=f"{_CHAIN}/session.py",
        old="            await asyncio.wait({opening})\n",
        new="            pass\n",
        seed=7232,
    ),
    Mutant(
        name="left-open-while-a-link-opens",
        what="A session that is given up while the link to its node is being opened again is never closed there.",
        path=f"{_CHAIN}/chain.py",
        old="        self.leases.close_left_since(link)\n",
        new="",
        seed=7645,
    ),
    # Steps and credit.
    Mutant(
        name="credit-lost-with-a-failure",
        what="The credit of a step that could not be sent is not given back.",
        path=f"{_CHAIN}/steps.py",
        old="        except BaseException:\n            self.credit.give(credit)\n            raise",
        new="        except BaseException:\n            raise",
        seed=3,
    ),
    Mutant(
        name="credit-given-twice",
        what="The credit of a step that came round is given back twice.",
        path=f"{_CHAIN}/steps.py",
        old="            self._num_ids_out -= num_ids\n",
        new="            self._num_ids_out -= num_ids\n            self.credit.give(credit)\n",
        seed=0,
    ),
    Mutant(
        name="deadline-never-cancelled",
        what="The deadline of a step applies although the step came round.",
        path=f"{_CHAIN}/steps.py",
        old="            timer.cancel()\n",
        new="",
        seed=0,
    ),
    # Leases at the head.
    Mutant(
        name="lease-renewed-late",
        what="The head renews leases only after they have run out.",
        path=f"{_CHAIN}/leases.py",
        old="_RENEWALS_A_LEASE = 3\n",
        new="_RENEWALS_A_LEASE = 0.5\n",
        seed=9,
    ),
    Mutant(
        name="lease-of-parked-not-renewed",
        what="The head does not renew the leases of parked sessions.",
        path=f"{_CHAIN}/leases.py",
        old="for session in self._sessions.held_at(link)}",
        new="for session in self._sessions.held_at(link) if not session.is_parked}",
        seed=9,
    ),
    Mutant(
        name="renewal-judged-by-what-is-open-now",
        what="A node's answer to a renewal is applied to a session that was opened after the renewal was sent.",
        path=f"{_CHAIN}/leases.py",
        old="session.on_failure(opened[session_id], lost)",
        new="session.on_failure(session.epoch, lost)",
        seed=2694,
    ),
    Mutant(
        name="leases-wait-for-the-next-renewal",
        what="Leases are not renewed when a link is back.",
        path=f"{_CHAIN}/leases.py",
        old="        if self._sessions.held_at(link):\n",
        new="        if False:\n",
        seed=3771,
    ),
    # Nodes that come and go.
    Mutant(
        name="loss-not-reported",
        what="The sessions of a broken link are not notified.",
        path=f"{_CHAIN}/chain.py",
        old="        self._fail_over(place.link, error)\n",
        new="",
        seed=3,
    ),
    Mutant(
        name="failure-ignored",
        what="The head does not fail the sessions of a step that failed on a node.",
        path=f"{_CHAIN}/chain.py",
        old="session.on_failure(failed.epoch, arrival.error)",
        new="pass",
        seed=95,
    ),
    Mutant(
        name="left-open-when-back",
        what="Sessions that were given up while a node was away are not closed once it is back.",
        path=f"{_CHAIN}/leases.py",
        old="            self._left_open.setdefault(link.name, []).append((session, epoch))\n",
        new="            pass\n",
        seed=51,
    ),
    Mutant(
        name="broken-link-is-used",
        what="A link that broke while it was opened is used.",
        path=f"{_CHAIN}/chain.py",
        old="            if broken:\n                raise broken[0]\n",
        new="",
        seed=19,
    ),
    Mutant(
        name="no-hop-between-newcomers",
        what="Two nodes that join at the same time have no hop between them.",
        path=f"{_CHAIN}/chain.py",
        old="            await self.paths.find_missing_hops(place)\n",
        new="",
        seed=33,
    ),
    Mutant(
        name="hops-not-found-anew",
        what="Hops are not found anew after a step was lost between two nodes.",
        path=f"{_CHAIN}/reconnect.py",
        old="await self._chain.paths.find_hops(there)",
        new="pass",
        seed=12,
    ),
    Mutant(
        name="recovery-not-announced",
        what="Streams that wait for a stage are not notified when it is served again.",
        path=f"{_CHAIN}/paths.py",
        old="        self._lost.pop(place, None)\n        self._update_settled()\n",
        new="        self._lost.pop(place, None)\n",
        seed=15,
    ),
    Mutant(
        name="lost-at-the-start-stays-lost",
        what="A node that is lost while the chain starts is never brought back.",
        path=f"{_CHAIN}/reconnect.py",
        old="for place in chain.paths.lost:",
        new="for place in ():",
        seed=59,
    ),
    Mutant(
        name="reconnects-after-the-end",
        what="A head that has stopped goes on bringing back its nodes.",
        path=f"{_CHAIN}/reconnect.py",
        old="        if self._is_stopped:\n            return\n",
        new="",
        seed=46,
    ),
    Mutant(
        name="stand-in-never-relieved",
        what="A stand-in goes on once its stage is served by a node again.",
        path=f"{_CHAIN}/reconnect.py",
        old="                    self._relieve(place.stage)\n",
        new="",
        seed=9,
    ),
    Mutant(
        name="stand-in-comes-too-late",
        what="A stand-in that was loaded while a node took its stage over serves beside the node.",
        path=f"{_CHAIN}/reconnect.py",
        old="if any(other.state is PlaceState.LIVE for other in place.stage):",
        new="if False:",
        seed=4973,
    ),
    Mutant(
        name="stand-in-not-released",
        what="A relieved stand-in keeps its memory.",
        path=f"{_CHAIN}/reconnect.py",
        old="await self._chain.release(stand_in)",
        new="pass",
        seed=9,
    ),
    Mutant(
        name="other-pipeline-is-used",
        what="A node that came back with another version of its stage is used.",
        path=f"{_CHAIN}/links.py",
        old="if (now.digests, now.boundaries, now.config_digest) != (",
        new="if (before.digests, before.boundaries, before.config_digest) != (",
        seed=39,
    ),
    Mutant(
        name="broken-link-not-reported",
        what="A link that breaks is not reported.",
        path=f"{_CHAIN}/links.py",
        old="        self._lost(self._lost_by(error))\n",
        new="        pass\n",
        seed=3,
    ),
    # Recovery.
    Mutant(
        name="replay-in-other-shapes",
        what="A sequence is recomputed in large chunks where its original chunks are required.",
        path=f"{_CHAIN}/recovery.py",
        old="    if mode is Recovery.FAST:\n",
        new="    if mode:\n",
        seed=3,
    ),
    Mutant(
        name="replay-too-far",
        what="A replay goes one position too far: the next step sends that id again.",
        path=f"{_CHAIN}/stream.py",
        old="return len(self.request.prompt) + self.num_generated - 1",
        new="return len(self.request.prompt) + self.num_generated",
        seed=3,
    ),
    Mutant(
        name="recovers-on-the-old-path",
        what="A stream is recovered on the links it had, though others have taken their place.",
        path=f"{_CHAIN}/recovery.py",
        old="        self._chain.move(session)\n",
        new="",
        seed=3,
    ),
    Mutant(
        name="likelihoods-doubled",
        what="After a recovery the likelihoods of resent chunks of a prompt occur twice.",
        path=f"{_CHAIN}/recovery.py",
        old="        del stream.prompt_logprobs[session.position :]\n",
        new="",
        seed=173,
    ),
    Mutant(
        name="recovery-keeps-the-discard",
        what="A recovered stream drops positions for drafts that recovery has dropped already.",
        path=f"{_CHAIN}/stream.py",
        old="        self._discard = 0\n        self.interruption = None\n",
        new="        self.interruption = None\n",
        seed=118,
    ),
    # Streams, drafts and microbatches.
    Mutant(
        name="growth-in-other-shapes",
        what="An answer that outgrew its session is recomputed as after a failure.",
        path=f"{_CHAIN}/growth.py",
        old="mode=Recovery.EXACT",
        new="mode=self._recoverer._settings.recovery",
        seed=261,
    ),
    Mutant(
        name="full-session-stays",
        what="A session that was outgrown is not closed.",
        path=f"{_CHAIN}/growth.py",
        old="        stream.move_to(larger)\n        await full.close()\n        return larger\n",
        new="        stream.move_to(larger)\n        return larger\n",
        seed=3,
    ),
    Mutant(
        name="full-session-stays-parked",
        what="A session that made way for a larger one stays parked.",
        path=f"{_CHAIN}/growth.py",
        old="        finally:\n            await full.close()\n",
        new="        finally:\n            pass\n",
        seed=0,
    ),
    Mutant(
        name="one-draft-too-many",
        what="A stream sends one draft more than its session has room for.",
        path=f"{_CHAIN}/stream.py",
        old="min(session.context, self._rewind_limit) - kept) - 1\n",
        new="min(session.context, self._rewind_limit) - kept)\n",
        seed=1,
    ),
    Mutant(
        name="wrong-draft-accepted",
        what="One wrong draft is kept in the session.",
        path=f"{_CHAIN}/stream.py",
        old="self._discard = num_sent - len(row.tokens)",
        new="self._discard = max(0, num_sent - len(row.tokens) - 1)",
        seed=1,
    ),
    Mutant(
        name="paused-for-ever",
        what="A stream that paused for a slow reader does not go on once it has caught up.",
        path=f"{_CHAIN}/stream.py",
        old="                    self._drained()\n",
        new="                    pass\n",
        seed=7,
    ),
    Mutant(
        name="paused-stream-not-ended",
        what="A paused stream whose reader leaves is not ended.",
        path=f"{_CHAIN}/stream.py",
        old="        self._news.set()\n        self._drained()\n",
        new="        self._news.set()\n",
        seed=174,
    ),
    Mutant(
        name="results-mixed-up",
        what="Streams of a microbatch get each other's tokens.",
        path=f"{_CHAIN}/microbatch.py",
        old="zip(self.rows, results, strict=True)",
        new="zip(self.rows, reversed(results), strict=True)",
        seed=29,
    ),
    # Admission, prompts and prefixes.
    Mutant(
        name="full-nodes-not-asked-again",
        what="A head does not ask full nodes again, where other heads' sessions end.",
        path=f"{_CHAIN}/admission.py",
        old="if self._asking is None or self._asking.done():",
        new="if False:",
        seed=15,
    ),
    Mutant(
        name="prefix-of-another-tenant",
        what="A prompt begins with KV of another tenant.",
        path=f"{_CHAIN}/prefixes.py",
        old="if parked.tenant != tenant:",
        new="if False:",
        seed=25,
    ),
    Mutant(
        name="prefix-of-a-whole-prompt",
        what="A prompt is reused whole, its last id included, which then runs again.",
        path=f"{_CHAIN}/prefixes.py",
        old="best: Prefix | None = None\n        known = list(ids[:-1])",
        new="best: Prefix | None = None\n        known = list(ids)",
        seed=22,
    ),
    Mutant(
        name="prefix-let-go-and-kept",
        what="A parked session that a longer one replaces stays on the nodes.",
        path=f"{_CHAIN}/prefixes.py",
        old="        self.drop(session)\n        await session.close()\n",
        new="        self.drop(session)\n",
        seed=853,
    ),
    Mutant(
        name="parked-loss-not-reported",
        what="The loss of a parked session is not recorded, so that prompts try to reuse it.",
        path=f"{_CHAIN}/prefixes.py",
        old="lost=lambda: self.drop(session)",
        new="lost=lambda: None",
        seed=5,
    ),
    # What a message holds.
    Mutant(
        name="epoch-lost-on-the-wire",
        what="A result does not name the epoch of its session.",
        path="shardhub/wire/codec.py",
        old="epoch=r.epoch,",
        new="epoch=0,",
        seed=0,
    ),
    Mutant(
        name="result-at-another-position",
        what="A result names a position before the one that its session has.",
        path="shardhub/wire/codec.py",
        old="position=r.position,",
        new="position=max(0, r.position - 1),",
        seed=0,
    ),
    Mutant(
        name="accepted-drafts-lost-on-the-wire",
        what="A result has the first of several tokens only.",
        path="shardhub/wire/codec.py",
        old="tokens=r.tokens,",
        new="tokens=r.tokens[:1],",
        seed=1,
    ),
    Mutant(
        name="likelihoods-lost-on-the-wire",
        what="A result leaves out the likelihoods of the prompt.",
        path="shardhub/wire/codec.py",
        old="target_logprobs=r.target_logprobs,",
        new="target_logprobs=(),",
        seed=7,
    ),
    Mutant(
        name="targets-lost-on-the-wire",
        what="A step does not say which ids' likelihoods are asked for.",
        path="shardhub/wire/codec.py",
        old="targets=row.targets,",
        new="targets=(),",
        seed=7,
    ),
    Mutant(
        name="mask-lost-on-the-wire",
        what="A step does not say that its draw waits for a mask.",
        path="shardhub/wire/codec.py",
        old="masked=row.masked,\n        targets=row.targets,",
        new="masked=False,\n        targets=row.targets,",
        seed=10,
    ),
    Mutant(
        name="verify-lost-on-the-wire",
        what="A step does not say that its ids are drafts, so that none is verified.",
        path="shardhub/wire/codec.py",
        old="verify=step.verify,",
        new="verify=False,",
        seed=1,
    ),
    Mutant(
        name="seed-lost-on-the-wire",
        what="A session draws with another seed than its request's.",
        path="shardhub/wire/codec.py",
        old="seed=p.seed,",
        new="seed=0,",
        seed=0,
    ),
    Mutant(
        name="temperature-lost-on-the-wire",
        what="A session draws the likeliest token whatever its temperature.",
        path="shardhub/wire/codec.py",
        old="temperature=p.temperature,",
        new="temperature=0.0,",
        seed=0,
    ),
    Mutant(
        name="mask-starts-no-step",
        what="A mask that comes after its step does not start it.",
        path=f"{_ENGINE}/masks.py",
        old="held.missing.discard(key)",
        new="pass",
        seed=14,
    ),
    Mutant(
        name="run-jobs-are-counted",
        what="Steps that have run count as waiting.",
        path=f"{_ENGINE}/jobs.py",
        old="job = self._owners[owner].pop()\n        self._num -= 1",
        new="job = self._owners[owner].pop()",
        seed=0,
    ),
)


def main(arguments: list[str] | None = None) -> int:
    """Search for seeds that detect the mutants."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to find; all if none is named")
    parser.add_argument("--most", type=int, default=300, help="seeds to run for each (default: 300)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--record", action="store_true", help="write the seeds that find them into this file")
    parser.add_argument("--write", action="store_true", help="write the table of docs/reliability.md, and run nothing")
    parser.add_argument("--check", action="store_true", help="say whether that table is as it would be written")
    options = parser.parse_args(arguments)
    if options.check:
        is_written = DOCUMENT.read_text() == written(DOCUMENT.read_text())
        print("the table of mutants is " + ("as written" if is_written else "stale: run this with --write"))
        return 0 if is_written else 1
    if options.write:
        DOCUMENT.write_text(written(DOCUMENT.read_text()))
        return 0
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := set(options.names) - known.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    mutants = [known[name] for name in options.names] or list(MUTANTS)
    num_missed = 0
    for mutant, seed, failures in hunt(mutants, lambda _: range(options.most), options.jobs):
        if seed is None:
            num_missed += 1
            print(f"{mutant.name}: NOT FOUND in {options.most} seeds", flush=True)
            continue
        print(f"{mutant.name}: seed {seed}: {failures[0][:200]}", flush=True)
        if options.record:
            _record(mutant, seed)
    print(f"{len(mutants) - num_missed} of {len(mutants)} mutants were found")
    return 1 if num_missed else 0


def _record(mutant: Mutant, seed: int) -> None:
    """Write a seed into this file."""
    file = Path(__file__)
    entry = re.compile(
        rf'(    Mutant\(\n        name="{mutant.name}",\n(?:        .*\n)*?)(        seed=\d+,\n)?(    \),\n)'
    )
    file.write_text(entry.sub(lambda match: f"{match[1]}        seed={seed},\n{match[3]}", file.read_text()))


def table() -> str:
    """The table of the document."""
    lines = [f"| {mutant.what} | `{mutant.path}` | {mutant.seed} |" for mutant in MUTANTS]
    return "\n".join(["| defect | module | found by seed |", "|---|---|---|", *lines])


def written(text: str) -> str:
    """The document with its table replaced by the current one."""
    pattern = re.compile(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", re.DOTALL)
    assert pattern.search(text), "the document has no place for the table"
    return pattern.sub(lambda _: f"{_BEGIN}\n\n{table()}\n\n{_END}", text)


if __name__ == "__main__":
    sys.exit(main())

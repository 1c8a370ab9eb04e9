"""What a survey computes from the nodes' readings: rates, the slowest stage, and what limits the chain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardhub.chain.chain_status import Reading, chain_status
from shardhub.errors import NodeUnreachable, RouteError
from shardhub.protocol import PROTOCOL_VERSIONS, Description, Limits, StageFacts
from tests import cut

LIMITS = Limits(
    max_chunk=64,
    max_rows=4,
    queue_steps=8,
    queue_bytes=1 << 20,
    max_context=128,
    max_sessions=4,
    lease_s=30.0,
    message_bytes=1 << 20,
    rewind_limit=128,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """The manifest of a tiny model in three stages."""
    folder = tmp_path_factory.mktemp("survey")
    return cut.tiny_pipeline(folder, (2, 4)).manifest


@pytest.fixture
def read(manifest):
    """Makes the reading of a node that serves one stage."""

    def make(stage: int, *, address: str | None = None, at: float = 0.0, boot: bytes = b"", **load: float) -> Reading:
        entry = manifest.stages[stage]
        address = address or f"node{stage}:1"
        facts = StageFacts(
            digests=(entry.digest,),
            boundaries=(entry.start, entry.stop),
            num_layers=manifest.num_layers,
            config_digest=manifest.config_digest,
            graph_hash="",
            dtype="F32",
            hidden_size=64,
            vocab_size=512,
            crossings_in=(),
        )
        description = Description(
            protocol_versions=PROTOCOL_VERSIONS,
            stage=facts,
            limits=LIMITS,
            boot_id=boot or address.encode(),
            advertise=(),
            num_sessions=0,
            load={"kv_budget_bytes": 1000.0, **load},
        )
        return Reading(address=address, at=at, description=description, first=stage, last=stage)

    return make


def decoded(steps: float, compute_s: float, **more: float) -> dict[str, float]:
    """A load's counters after this many steps of 2 rows."""
    return {
        "decode_steps": steps,
        "decode_rows": 2 * steps,
        "decode_ids": 2 * steps,
        "decode_compute_s": compute_s,
        **more,
    }


def test_rates_are_of_what_was_done_between_two_readings(manifest, read) -> None:
    """Means are over the steps between two readings; tokens and the busy share are over the time between them."""
    before = [read(i, at=1.0, **decoded(100, 50.0)) for i in range(3)]
    now = [
        read(i, at=5.0, **decoded(110, 50.0 + (i + 1) * 0.5, decode_wait_s=0.2, prefill_compute_s=1.0))
        for i in range(3)
    ]
    status = chain_status(manifest, now, before)
    rates = [node.rates for node in status.nodes]
    assert [r.compute_s for r in rates] == pytest.approx([0.05, 0.1, 0.15])
    assert [r.tokens_per_s for r in rates] == [5.0] * 3
    assert [r.rows for r in rates] == [2.0] * 3
    assert [r.busy for r in rates] == pytest.approx([0.375, 0.5, 0.625])
    assert all(r.is_current for r in rates)
    assert status.slowest == 2
    assert status.alone_s == pytest.approx(0.3)
    assert status.chain_s == pytest.approx(0.15)
    assert status.limit.startswith("No stage is busy: stage 2, the slowest, computes 62% of the time, 150.0 ms")


def test_busy_stage_limits_the_chain(manifest, read) -> None:
    """The slowest stage limits the chain once it computes nearly all the time."""
    before = [read(i) for i in range(3)]
    now = [read(i, at=10.0, **decoded(10, 9.5 if i == 1 else 2.0)) for i in range(3)]
    status = chain_status(manifest, now, before)
    assert status.slowest == 1
    assert status.limit == "Stage 1 limits the chain: it computes 95% of the time, 950.0 ms a decode step."


def test_replicas_share_a_stages_steps(manifest, read) -> None:
    """A stage on two nodes takes half as long, so that another one is the slowest."""
    now = [
        read(0, **decoded(10, 3.0)),
        read(1, address="a:1", **decoded(10, 4.0)),
        read(1, address="b:1", **decoded(10, 4.0)),
        read(2, **decoded(10, 1.0)),
    ]
    status = chain_status(manifest, now)
    assert status.nodes[status.slowest].reading.address == "node0:1"
    assert status.alone_s == pytest.approx(0.3 + 0.4 + 0.1)
    assert status.chain_s == pytest.approx(0.3)
    assert status.problem is None


def test_node_that_was_started_again_counts_from_its_start(manifest, read) -> None:
    """Counters that fell give no rates: means are since the node's start, and the time before is left out."""
    before = [read(i, **decoded(100, 50.0)) for i in range(3)]
    now = [read(i, at=1.0, boot=b"again", **decoded(10, 1.0)) for i in range(3)]
    for node in chain_status(manifest, now, before).nodes:
        assert node.rates.compute_s == pytest.approx(0.1)
        assert node.rates.tokens_per_s is None
        assert not node.rates.is_current


def test_full_stage_limits_before_a_slow_one(manifest, read) -> None:
    """A stage whose sessions or KV memory are all in use limits the chain; parked sessions do not count."""
    calm = [read(0), read(2)]
    full = chain_status(manifest, [*calm, read(1, sessions=4.0)])
    assert full.limit.startswith("Stage 1 at node1:1 has all its 4 sessions in use")
    assert "KV cache" in chain_status(manifest, [*calm, read(1, kv_reserved_bytes=990.0)]).limit
    parked = chain_status(manifest, [*calm, read(1, kv_reserved_bytes=990.0, kv_parked_bytes=900.0)])
    assert parked.limit == "Not every stage has decoded anything yet."


def test_nobody_and_unreachable_are_reported(manifest, read) -> None:
    """A node that does not answer is listed last, its stage is unserved, and the chain cannot run."""
    gone = Reading(address="a:1", at=0.0, error=NodeUnreachable("No node answers at a:1."))
    status = chain_status(manifest, [gone, read(2), read(0)])
    assert [node.reading.address for node in status.nodes] == ["node0:1", "node2:1", "a:1"]
    assert status.unserved == (1,)
    assert isinstance(status.problem, RouteError)
    assert status.limit.startswith("The chain cannot run: No node serves stage 1")
    assert status.slowest is status.alone_s is status.chain_s is None


def test_one_node_named_by_two_addresses_is_reported(manifest, read) -> None:
    """One node under two addresses: all stages are served, yet no head could start, and the reason is given."""
    twice = replace(read(1, address="b:1"), description=read(1).description)
    status = chain_status(manifest, [read(0), read(1), read(2), twice])
    assert status.unserved == ()
    assert "the same node" in status.limit


def test_nodes_that_keep_kv_in_different_forms_are_reported(manifest, read) -> None:
    """Nodes with different KV forms: no head could start, and the message names both nodes and the remedy."""
    plain = read(1)
    assert plain.description is not None
    quantised = replace(plain.description.stage, kv_bits=8, kv_group_size=64)
    other = replace(plain, description=replace(plain.description, stage=quantised))
    status = chain_status(manifest, [read(0), other, read(2)])
    assert status.limit == "The chain cannot run: node0:1 and node1:1 keep K and V in different forms."
    assert "`kv_bits`" in status.problem.hint

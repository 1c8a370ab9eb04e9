"""Weight files from neighbours: the Hub is spared, and no neighbour can give a wrong byte or fail a fetch."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from shardhub.errors import Overloaded
from shardhub.hub.cache import Cache
from shardhub.hub.client import hub_api
from shardhub.hub.fetch import Fetcher
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference
from shardhub.hub.snapshot import FetchProgress
from shardhub.localhub.server import RunningHub
from shardhub.manifest import WeightFile
from shardhub.security.certificates import Role
from shardhub.security.trust import PLAIN, Security, Trust
from shardhub.shard import read_shard
from shardhub.sizes import size_text
from shardhub.usecases import neighbour
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.neighbours import AskedNeighbours
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.status import to_status
from tests import cut
from tests.checkpoints import write_checkpoint
from tests.hub import faulty
from tests.hub.fetching import FETCH, command
from tests.hub.published import OVER_LFS, Published, publish
from tests.hub.referring import refer, same_weights
from tests.hub.sharing import (
    FIRST_BYTES,
    BusyInTheMiddle,
    Dripping,
    Endless,
    Honest,
    Leaving,
    Lying,
    Oversized,
    Refusing,
    Short,
    Stalling,
    listening,
    sharing,
    write,
)
from tests.ports import kept
from tests.security.cluster import NOW, Cluster
from tests.waiting import wait_until

pytestmark = OVER_LFS

WEIGHTS = ".safetensors"


@pytest.fixture(scope="module")
def wide(shared_hub, tmp_path_factory) -> Published:
    """A model whose layers take several chunks each, cut in two and published."""
    folder = tmp_path_factory.mktemp("wide")
    model = cut.tiny_model(folder / "model", hidden_size=128, intermediate_size=256)
    pipeline = cut.cut(model, folder / "out", (3,))
    return publish(hub_api(shared_hub.endpoint, shared_hub.token("wide")), "wide", pipeline, folder)


@pytest.fixture(scope="module")
def holder(shared_hub, wide: Published, tmp_path_factory) -> Cache:
    """The cache of a machine that has both shards; nobody changes it."""
    cache = Cache(tmp_path_factory.mktemp("holder") / "cache")
    api = hub_api(shared_hub.endpoint, shared_hub.token("wide"))
    for index in range(2):
        Fetcher(lambda: api, cache).fetch(shard_of(wide, index))
    cache.release()
    return cache


@pytest.fixture
def seen() -> list[FetchProgress]:
    """The fetch's progress."""
    return []


@pytest.fixture
def token(shared_hub: RunningHub) -> str:
    """A token of the fetching user, who may read what `friends` publishes."""
    return shared_hub.hub.token("wide", groups=["friends"])


@pytest.fixture
def fetching(
    loop: LoopThread,
    reader: HfApi,
    tmp_path: Path,
    patience: Patience,
    said: list[str],
    seen: list[FetchProgress],
) -> Iterator[Callable[..., Fetcher]]:
    """Makes a fetcher with an empty cache and these neighbours."""
    with ExitStack() as stack:

        def make(*addresses: str, **settings: Any) -> Fetcher:
            settings = {"busy_s": 0.0, **settings}
            asked = stack.enter_context(AskedNeighbours(lambda: addresses, loop=loop, notice=said.append, **settings))
            cache = Cache(tmp_path / "cache")
            stack.callback(cache.release)
            return Fetcher(lambda: reader, cache, patience=patience, progress=seen.append, neighbours=asked)

        yield make


def in_order(*addresses: str) -> Callable[[list], None]:
    """Has neighbours tried in this order."""
    return lambda neighbours: neighbours.sort(key=lambda one: addresses.index(one.address))


def shard_of(published: Published, index: int = 0) -> Reference:
    return Reference(repo=published.shards[index], revision=published.commits[index])


def files_of(published: Published, index: int = 0) -> list[WeightFile]:
    return list(read_shard(cut.shard_folder(published.local, index)).stage.weight_files)


def is_right(folder: Path, published: Published, index: int = 0) -> bool:
    """Whether a fetched shard has the published bytes."""
    local = cut.shard_folder(published.local, index)
    return all(
        (folder / file.name).read_bytes() == (local / file.name).read_bytes() for file in files_of(published, index)
    )


def test_neighbours_give_what_the_hub_then_need_not(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop: LoopThread, said, seen
) -> None:
    """A shard that a neighbour has comes from it to the last weight byte; notes and progress say so."""
    with sharing(loop, holder) as address:
        assert is_right(fetching(address).fetch(shard_of(wide)), wide)
    assert net.fetched(WEIGHTS) == 0
    assert net.fetched("stage.json") > 0
    size_bytes = sum(file.size_bytes for file in files_of(wide))
    assert {state.place for state in seen} == {address}
    assert seen[-1].done_bytes == seen[-1].total_bytes == size_bytes
    assert said == [f"fetching 4 of 4 weight files ({size_text(size_bytes)}) from {address}"]


def test_a_new_cut_takes_its_layers_from_neighbours(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop: LoopThread, shared_hub: RunningHub, tmp_path
) -> None:
    """A shard of another cut, with layers of both of the neighbour's shards, comes from the neighbour."""
    other = cut.cut(wide.local.folder.parent.parent / "model", tmp_path / "other", (2, 4), name="o")
    published = publish(hub_api(shared_hub.endpoint, shared_hub.token("wide")), "wide", other, tmp_path)
    with sharing(loop, holder) as address:
        assert is_right(fetching(address).fetch(shard_of(published, 1)), published, 1)
    assert net.fetched(WEIGHTS) == 0


@pytest.mark.parametrize("is_readable", [True, False], ids=["source", "no source"])
def test_a_shard_by_reference_comes_from_neighbours(
    is_readable, fetching, loop: LoopThread, net: faulty.Network, api: HfApi, user: str, shared_hub, tmp_path
) -> None:
    """Weight files that a neighbour assembled come from it, also for a node that may not read their source."""
    owner = "friends" if is_readable else user
    api = hub_api(shared_hub.endpoint, shared_hub.token("friends")) if is_readable else api
    write_checkpoint(tmp_path / "model", 6, rows=4096, tied=False)
    referring = refer(api, owner, tmp_path / "model", [3], tmp_path / "work")
    holder = Cache(tmp_path / "holder")
    Fetcher(lambda: api, holder).fetch(referring.shard())
    net.forget()
    with sharing(loop, holder) as address:
        folder = fetching(address, busy_s=30.0).fetch(referring.shard())
    assert same_weights(folder, referring.copied.shards[0].folder)
    assert net.fetched(WEIGHTS) == 0
    holder.release()


def test_what_neighbours_lack_comes_from_the_hub(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop: LoopThread, said
) -> None:
    """Files that no neighbour has are fetched from the Hub, each once."""
    first, *others = files_of(wide)
    with listening(loop, Honest(holder, others[:1])) as one, listening(loop, Honest(holder, others[1:])) as two:
        assert is_right(fetching(one, two).fetch(shard_of(wide)), wide)
    assert net.fetched(WEIGHTS) == first.size_bytes
    assert len(said) == 1
    assert one in said[0]
    assert two in said[0]


def test_a_file_begun_at_the_hub_is_ended_by_a_neighbour(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop: LoopThread
) -> None:
    """A neighbour is asked for the rest of a partial file only."""
    file = files_of(wide)[1]
    honest = Honest(holder, [file])
    with listening(loop, honest) as address:
        fetcher = fetching(address)
        fetcher.cache.prepare()
        partial = fetcher.cache.partial(file.sha256, is_locked=True)
        partial.write_bytes(holder.blob(file.sha256).read_bytes()[:1000])
        assert is_right(fetcher.fetch(shard_of(wide)), wide)
    assert honest.asked == [(1000, file.size_bytes)]
    assert net.fetched(file.name) == 0


# Neighbours that misbehave


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Stalling, "is too slow"),
        (Dripping, "is too slow"),
        (Leaving, "could not be read to its end"),
        (Short, "bytes early"),
        (Refusing, "The disk is full"),
        (BusyInTheMiddle, "The node is busy"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_hub_goes_on_where_a_neighbour_stops(
    kind: type[Honest], reason: str, fetching, wide: Published, holder: Cache, net: faulty.Network, loop, said
) -> None:
    """A neighbour that stalls, drips, leaves, ends early or refuses costs a note and the bytes it did not send."""
    files = files_of(wide)
    servicer = kind(holder, files)
    with listening(loop, servicer) as address:
        assert is_right(fetching(address, stall_s=0.5).fetch(shard_of(wide)), wide)
    assert servicer.asked == [(0, servicer.asked[0][1])], "it was asked again"
    first = next(file for file in files if (0, file.size_bytes) == servicer.asked[0])
    assert net.fetched(WEIGHTS) == sum(file.size_bytes for file in files) - min(FIRST_BYTES, first.size_bytes)
    assert len(said) == 2
    assert reason in said[1]
    assert address in said[1]
    assert f"Trying {wide.shards[0]}/" in said[1]
    assert said[1].isprintable()


@pytest.mark.parametrize("kind", [Endless, Oversized])
def test_more_bytes_than_a_file_has_are_refused(
    kind: type[Honest], fetching, wide: Published, holder: Cache, net: faulty.Network, loop, said
) -> None:
    """A neighbour that sends too much is left, and never fills the disk."""
    with listening(loop, kind(holder, files_of(wide))) as address:
        assert is_right(fetching(address).fetch(shard_of(wide)), wide)
    assert len(said) == 2
    assert net.fetched(WEIGHTS) > 0


def test_a_lying_neighbour_is_found_out_and_left(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop, said
) -> None:
    """Wrong bytes are thrown away with one note, and all files come from elsewhere, whole."""
    servicer = Lying(holder, files_of(wide))
    with listening(loop, servicer) as address:
        folder = fetching(address).fetch(shard_of(wide))
    assert is_right(folder, wide)
    assert len(servicer.asked) == 1
    assert net.fetched(WEIGHTS) == sum(file.size_bytes for file in files_of(wide))
    assert len(said) == 2
    assert f"at {address} is corrupt. Trying {wide.shards[0]}/" in said[1]


def test_a_lie_that_another_place_ends_is_found_out(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop, said
) -> None:
    """Wrong first bytes of one neighbour do not count against the one that sends the rest: it sends all of them."""

    class LyingAtFirst(Honest):
        async def send(self, data, context):
            await write(bytes(FIRST_BYTES), context)

    file = max(files_of(wide), key=lambda file: file.size_bytes)
    honest = Honest(holder, [file])
    with listening(loop, LyingAtFirst(holder, [file])) as bad, listening(loop, honest) as good:
        fetcher = fetching(bad, good, shuffle=in_order(bad, good))
        assert is_right(fetcher.fetch(shard_of(wide)), wide)
    assert honest.asked == [(FIRST_BYTES, file.size_bytes), (0, file.size_bytes)]
    assert net.fetched(file.name) == 0


def test_sizes_that_are_wrong_and_files_nobody_asked_for_are_ignored(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop, said
) -> None:
    """A neighbour whose files have other sizes than the published ones is not asked for them."""

    class Boasting(Honest):
        async def Find(self, request, context):
            files = [pb.SharedFile(sha256=sha256, size_bytes=1 << 60) for sha256 in request.sha256]
            return pb.FindReply(files=[*files, pb.SharedFile(sha256=b"x", size_bytes=1)])

    servicer = Boasting(holder, files_of(wide))
    with listening(loop, servicer) as address:
        assert is_right(fetching(address).fetch(shard_of(wide)), wide)
    assert servicer.asked == []
    assert said == []


def test_an_address_without_such_a_node_costs_a_note(
    fetching, wide: Published, loop: LoopThread, said, net: faulty.Network
) -> None:
    """Where nothing listens, where something else does, and where an older node does, the Hub gives all."""
    with kept() as port, listening(loop, None) as older:
        nothing, other = f"127.0.0.1:{port}", net.endpoint.removeprefix("http://")
        assert is_right(fetching(nothing, older, other).fetch(shard_of(wide)), wide)
    assert len(said) == 3
    for address, reason in ((nothing, "refused"), (older, "another version"), (other, "")):
        assert any(line.startswith(f"no weight files from {address}: ") and reason in line for line in said), said


# Neighbours that are busy


def test_a_busy_neighbour_is_asked_again(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop, said, monkeypatch
) -> None:
    """Whoever is busy is asked later, and the Hub is spared."""
    monkeypatch.setattr(neighbour, "BUSY_POLL_S", 0.01)

    class BusyTwice(Honest):
        async def send(self, data, context):
            if len(self.asked) <= 2:
                await context.abort(*to_status(Overloaded("The node is busy.")))
            await write(data, context)

    servicer = BusyTwice(holder, files_of(wide))
    with listening(loop, servicer) as address:
        assert is_right(fetching(address, busy_s=60.0).fetch(shard_of(wide)), wide)
    assert len(servicer.asked) == len(files_of(wide)) + 2
    assert net.fetched(WEIGHTS) == 0
    assert len(said) == 1


class Busy(Honest):
    """Is busy."""

    async def send(self, data, context):
        await context.abort(*to_status(Overloaded("The node is busy.")))


def test_of_a_busy_and_a_free_neighbour_the_free_one_gives(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop
) -> None:
    """A neighbour that is busy is passed over at once if another one has the file."""
    with listening(loop, Busy(holder, files_of(wide))) as busy, sharing(loop, holder) as free:
        fetcher = fetching(busy, free, busy_s=600.0, shuffle=in_order(busy, free))
        assert is_right(fetcher.fetch(shard_of(wide)), wide)
    assert net.fetched(WEIGHTS) == 0


def test_a_neighbour_that_stays_busy_leaves_it_to_the_hub(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop, said
) -> None:
    """When patience is over the Hub gives the file, with a note, and the neighbour is asked for the next one."""
    servicer = Busy(holder, files_of(wide))
    with listening(loop, servicer) as address:
        assert is_right(fetching(address).fetch(shard_of(wide)), wide)
    assert net.fetched(WEIGHTS) == sum(file.size_bytes for file in files_of(wide))
    assert len(servicer.asked) == len(files_of(wide))
    assert f"{address} is busy. Trying {wide.shards[0]}/" in said[1]


# Killed processes


def test_a_kill_in_mid_transfer_is_finished_by_the_next_run(
    fetching, wide: Published, holder: Cache, net: faulty.Network, loop, token: str
) -> None:
    """After SIGKILL nothing looks whole; the next run takes the rest from a neighbour."""
    file = max(files_of(wide), key=lambda file: file.size_bytes)
    honest = Honest(holder, [file])
    with listening(loop, Stalling(holder, [file])) as stalling, listening(loop, honest) as address:
        fetcher = fetching(address)
        child = subprocess.Popen(
            command(FETCH.replace(*_WITH_NEIGHBOUR), net.endpoint, token, shard_of(wide), fetcher.cache.root),
            env={**os.environ, "NEIGHBOUR": stalling},
        )
        partial = fetcher.cache.partial(file.sha256, is_locked=True)
        wait_until(
            lambda: child.poll() is not None or (partial.exists() and partial.stat().st_size >= FIRST_BYTES), 120
        )
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not fetcher.cache.blob(file.sha256).exists()
        assert is_right(fetcher.fetch(shard_of(wide)), wide)
    assert honest.asked == [(FIRST_BYTES, file.size_bytes)]
    assert net.fetched(file.name) == 0


_WITH_NEIGHBOUR = (
    "fetcher = Fetcher(",
    """
import os
from functools import partial
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.neighbours import AskedNeighbours
loop = LoopThread().__enter__()
asked = AskedNeighbours(lambda: [os.environ["NEIGHBOUR"]], loop=loop, notice=say)
fetcher = partial(Fetcher, neighbours=asked)(""",
)


# Certificates


def over_tls(trust: Trust) -> Security:
    return Security(trust=trust, everywhere=True)


@pytest.mark.parametrize("role", [Role.NODE, Role.HEAD])
def test_members_of_the_cluster_share_over_tls(
    role: Role, fetching, wide: Published, holder: Cache, net: faulty.Network, loop, tmp_path
) -> None:
    """Nodes and heads with the cluster's certificates are given files."""
    cluster = Cluster(tmp_path / "cluster")
    with sharing(loop, holder, cluster.trust("mini", Role.NODE)) as address:
        fetcher = fetching(address, security=over_tls(cluster.trust("new", role)))
        assert is_right(fetcher.fetch(shard_of(wide)), wide)
    assert net.fetched(WEIGHTS) == 0


@pytest.mark.parametrize("stranger", ["without certificate", "of another cluster", "revoked"])
def test_strangers_are_given_nothing_and_fetch_from_the_hub(
    stranger: str, fetching, wide: Published, holder: Cache, net: faulty.Network, loop, said, tmp_path
) -> None:
    """Whoever has no certificate of the cluster, or a revoked one, reads no byte; its own fetch goes on with a note."""
    cluster, other = Cluster(tmp_path / "cluster"), Cluster(tmp_path / "other")
    mini = cluster.trust("mini", Role.NODE)
    trusts = {"of another cluster": other, "revoked": cluster}
    security = over_tls(trusts[stranger].trust("new", Role.NODE)) if stranger in trusts else PLAIN
    if stranger == "revoked":
        mini.learn(cluster.authority.revoke("new", now=NOW).pem)
    with sharing(loop, holder, mini) as address:
        assert is_right(fetching(address, security=security).fetch(shard_of(wide)), wide)
    assert net.fetched(WEIGHTS) == sum(file.size_bytes for file in files_of(wide))
    assert len(said) == 1
    assert said[0].startswith(f"no weight files from {address}: ")

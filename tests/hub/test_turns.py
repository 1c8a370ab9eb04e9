"""Machines that fetch the same weight files at one moment: each comes from the Hub once, and no wait is endless."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from shardhub.chain.links import describe
from shardhub.errors import NodeLoading
from shardhub.hub.cache import Cache
from shardhub.hub.claims import Claims
from shardhub.hub.fetch import Fetcher
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference
from shardhub.manifest import WeightFile
from shardhub.node.file_servicer import Sharing
from shardhub.node.lifecycle import NodeSettings
from shardhub.node.lobby import Lobby
from shardhub.protocol import claim_rank
from shardhub.shard import read_shard
from shardhub.usecases.loop import LoopThread
from shardhub.usecases.neighbours import AskedNeighbours
from shardhub.wire import shardhub_pb2 as pb
from tests import cut
from tests.hub import faulty
from tests.hub.published import OVER_LFS, Published
from tests.hub.sharing import Honest, listening
from tests.ports import kept
from tests.waiting import wait_until

pytestmark = OVER_LFS

WEIGHTS = ".safetensors"


@pytest.fixture
def shard(published: Published) -> Reference:
    """What is fetched."""
    return Reference(repo=published.shards[0], revision=published.commits[0])


@pytest.fixture
def files(published: Published) -> list[WeightFile]:
    """Its weight files."""
    return list(read_shard(cut.shard_folder(published.local, 0)).stage.weight_files)


class Machine:
    """A machine whose node has not its shards yet.

    Args:
        port: Where its node listens; 0 takes a free one.
    """

    def __init__(
        self,
        folder: Path,
        loop: LoopThread,
        api: HfApi,
        patience: Patience,
        *,
        port: int = 0,
        stall_s: float = 30.0,
    ) -> None:
        self.cache = Cache(folder)
        self.claims = Claims()
        self.named: list[str] = []
        self.said: list[str] = []
        self.port = 0
        self._loop = loop
        self.asked = AskedNeighbours(
            lambda: self.named,
            loop=loop,
            notice=self.said.append,
            claims=self.claims,
            announce=self.open,
            stall_s=stall_s,
            poll_s=0.05,
        )
        self.lobby = Lobby(
            NodeSettings(port=port, sharing=Sharing(cache=self.cache, claims=self.claims, on_asked=self.asked.meet))
        )
        self.fetcher = Fetcher(lambda: api, self.cache, patience=patience, neighbours=self.asked)

    def open(self) -> int:
        self.port = self._loop.wait(self.lobby.open())
        return self.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.wait(self.lobby.close())
        self.asked.__exit__()
        self.cache.release()


@pytest.fixture
def machine(loop: LoopThread, reader: HfApi, tmp_path: Path, patience: Patience) -> Iterator[Callable[..., Machine]]:
    """Makes machines with empty caches."""
    with ExitStack() as stack:

        def make(name: str, **settings: float) -> Machine:
            made = Machine(tmp_path / name, loop, reader, patience, **settings)
            stack.callback(made.close)
            return made

        yield make


def size_of(files: list[WeightFile]) -> int:
    return sum(file.size_bytes for file in files)


def is_right(folder: Path, published: Published, files: list[WeightFile]) -> bool:
    """Whether a fetched shard has the published bytes."""
    local = cut.shard_folder(published.local, 0)
    return all((folder / file.name).read_bytes() == (local / file.name).read_bytes() for file in files)


def fetch_at_once(machines: list[Machine], shard: Reference) -> list[Path]:
    """Have machines fetch at one moment."""
    barrier = threading.Barrier(len(machines))

    def fetch(machine: Machine) -> Path:
        barrier.wait()
        return machine.fetcher.fetch(shard)

    with ThreadPoolExecutor(len(machines)) as pool:
        return list(pool.map(fetch, machines))


@pytest.mark.parametrize("knowing", ["all", "one"])
def test_each_file_comes_from_the_hub_once(
    knowing: str, machine, shard: Reference, files, published: Published, net: faulty.Network
) -> None:
    """Machines that start at one moment share the files out, also if only one address is known to the others."""
    with kept() as first, kept() as second, kept() as third:
        ports = [first, second, third]
        machines = [machine(f"at {port}", port=port) for port in ports]
        machines[0].open()
        for one in machines:
            one.named = [f"127.0.0.1:{port}" for port in (ports if knowing == "all" else ports[:1])]
        folders = fetch_at_once(machines, shard)
    assert all(is_right(folder, published, files) for folder in folders)
    if knowing == "all":
        assert net.fetched(WEIGHTS) == size_of(files), [one.said for one in machines]
    else:  # the first machine may have asked before the others were known to it
        assert net.fetched(WEIGHTS) <= 3 * size_of(files)


def test_a_file_is_handed_on_while_its_shard_is_still_fetched(
    machine, shard: Reference, files, published: Published, net: faulty.Network
) -> None:
    """While one machine waits for the Hub, another takes the files that it has already, and waits for the rest."""
    first, second = machine("first"), machine("second")
    going_on = threading.Event()
    last = files[-1]
    net.on_request = lambda path: going_on.wait(60) if path.endswith(last.name) else None
    with ThreadPoolExecutor(2) as pool:
        fetching = pool.submit(first.fetcher.fetch, shard)
        wait_until(lambda: [claim.sha256 for claim in first.claims.among([last.sha256])])
        second.named = [first.address]
        other = pool.submit(second.fetcher.fetch, shard)
        try:
            wait_until(lambda: all(second.cache.blob(file.sha256).exists() for file in files[:-1]))
            wait_until(lambda: any("waiting for 1 weight file" in text for text in second.said))
        finally:
            going_on.set()
        assert is_right(fetching.result(), published, files)
        assert is_right(other.result(), published, files)
    assert net.fetched(WEIGHTS) == size_of(files)
    assert any(first.address in text for text in second.said)


class Claiming(Honest):
    """Claims that it fetches every file, and says how far it has come; it never has one."""

    done_bytes = 0
    step_bytes = 0
    begun = True
    instance = bytes(16)
    is_dropped = False

    async def Find(self, request, context):
        if self.is_dropped:
            return pb.FindReply(instance=self.instance)
        self.done_bytes += self.step_bytes
        claims = [pb.Claim(sha256=sha256, done_bytes=self.done_bytes, begun=self.begun) for sha256 in request.sha256]
        return pb.FindReply(claims=claims, instance=self.instance)


class Boasting(Claiming):
    """Comes further without end."""

    step_bytes = 10_000_000


class Undecided(Claiming):
    """Claims without ever beginning."""

    begun = False


@pytest.mark.parametrize("kind", [Claiming, Undecided])
def test_who_does_not_come_further_is_not_waited_for(
    kind: type[Claiming], machine, loop, shard: Reference, files, published: Published, net: faulty.Network
) -> None:
    """A neighbour that claims all files and fetches nothing delays a fetch by its patience, once."""
    with listening(loop, kind(Cache(), [])) as address:
        one = machine("one", stall_s=0.3)
        one.named = [address]
        assert is_right(one.fetcher.fetch(shard), published, files)
    assert net.fetched(WEIGHTS) == size_of(files)


def test_who_claims_more_bytes_than_a_file_has_is_not_waited_for(
    machine, loop, shard: Reference, files, published: Published, net: faulty.Network
) -> None:
    """Progress counts up to a file's size: a neighbour that boasts delays a fetch, and does not stop it."""
    with listening(loop, Boasting(Cache(), [])) as address:
        one = machine("one", stall_s=0.3)
        one.named = [address]
        assert is_right(one.fetcher.fetch(shard), published, files)
    assert net.fetched(WEIGHTS) == size_of(files)


def test_who_leaves_is_not_waited_for(
    machine, loop, shard: Reference, files, published: Published, net: faulty.Network, monkeypatch
) -> None:
    """If the machine that fetches a file goes away, another one fetches it."""
    monkeypatch.setattr("shardhub.usecases.neighbours.AWAY_S", 0.2)
    one = machine("one")
    with ExitStack() as stack:
        one.named = [stack.enter_context(listening(loop, Claiming(Cache(), [])))]
        with ThreadPoolExecutor(1) as pool:
            fetching = pool.submit(one.fetcher.fetch, shard)
            wait_until(lambda: any("waiting for" in text for text in one.said))
            assert net.fetched(WEIGHTS) == 0
            stack.close()
            assert is_right(fetching.result(), published, files)
    assert net.fetched(WEIGHTS) == size_of(files)
    assert any(text.startswith(f"no weight files from {one.named[0]}: ") for text in one.said)


def test_of_two_claims_the_one_with_the_higher_rank_stays(machine, loop, files) -> None:
    """A claim gives way to a higher one and to a fetch that has begun, and wins once a lower one is dropped."""
    one = machine("one")
    file = files[0]
    ranks = sorted([bytes([number]) * 16 for number in range(9)], key=lambda each: claim_rank(each, file.sha256))
    own = one.claims.rank(file.sha256)
    higher = next((each for each in ranks if claim_rank(each, file.sha256) > own), None)
    lower = next((each for each in ranks if claim_rank(each, file.sha256) < own), None)
    rival = Undecided(Cache(), [])
    with listening(loop, rival) as address:
        one.named = [address]
        if higher is not None:
            rival.instance = higher
            one.asked.ask([file])
            assert not one.asked.win(file, lambda: None)
            assert one.claims.among([file.sha256]) == []
        if lower is not None:
            rival.instance = lower
            one.asked.ask([file])
            seen: list[bool] = []

            def drop() -> None:
                seen.append(True)
                rival.is_dropped = True

            assert one.asked.win(file, drop)
            assert seen
            assert one.claims.among([file.sha256])[0].begun


def test_the_port_is_free_for_the_node_and_transfers_go_on(
    machine, loop, shard: Reference, files, published: Published
) -> None:
    """While a node fetches it says that it loads; its port then goes over to the node without ending a transfer."""
    one = machine("one")
    one.fetcher.fetch(shard)
    with pytest.raises(NodeLoading):
        loop.wait(describe(one.address))
    before = one.lobby.settings.port
    loop.wait(one.lobby.leave())
    again = machine("again", port=before)
    assert again.open() == before


def test_a_machine_that_leads_to_itself_is_left_out(machine, shard: Reference, files, published, net) -> None:
    """A machine whose own address is among its neighbours' waits for nobody."""
    with kept() as port:
        one = machine("one", port=port)
        one.named = [f"127.0.0.1:{port}", f"localhost:{port}"]
        assert is_right(one.fetcher.fetch(shard), published, files)
    assert net.fetched(WEIGHTS) == size_of(files)
    assert one.said == []

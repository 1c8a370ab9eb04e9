"""A node's service of weight files: what it gives, what it refuses, its bounds, and how it yields to steps."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest

from shardhub.errors import AccessError, CertificateRefused, NodeLost, NotFound, Overloaded, ShardhubError, WireError
from shardhub.hub.cache import Cache
from shardhub.limits import MAX_FILES_ASKED, MAX_NODES_KEPT
from shardhub.manifest import Stage, WeightFile, encode
from shardhub.naming import CONFIG_FILE, STAGE_FILE
from shardhub.node.file_servicer import MAX_TRANSFERS, FileServicer, Sharing
from shardhub.security.certificates import Role
from shardhub.security.trust import PLAIN, Security
from shardhub.shard import Pipeline, read_shard
from shardhub.wire import shardhub_pb2 as pb
from shardhub.wire.files import FileStream, file_options, find_files, introduce
from shardhub.wire.secure import open_channel
from shardhub.wire.shardhub_pb2_grpc import FilesStub
from shardhub.wire.status import from_rpc
from tests import cut
from tests.hub.sharing import MESSAGE_BYTES, servicer_of, serving
from tests.security.cluster import NOW, Cluster
from tests.security.loop import in_loop
from tests.virtual import VirtualClock
from tests.waiting import until

REPO, COMMIT = "ann/m-shard-0", "a" * 40
# More than gRPC keeps in its buffers.
BIG_BYTES = 64 << 20
CHUNK_BYTES = MESSAGE_BYTES // 2
HEARD_S = 30


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    """A tiny model, cut in two."""
    return cut.tiny_pipeline(tmp_path_factory.mktemp("files"), (3,))


@pytest.fixture
def stage(pipeline: Pipeline) -> Stage:
    """The first stage."""
    return read_shard(cut.shard_folder(pipeline, 0)).stage


@pytest.fixture
def cache(tmp_path: Path, pipeline: Pipeline) -> Cache:
    """A cache that has the first stage's shard."""
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    begin(cache, cut.shard_folder(pipeline, 0))
    cache.finish(REPO, COMMIT)
    return cache


@pytest.fixture
def big(cache: Cache, stage: Stage) -> WeightFile:
    """A file of another shard in that cache, too large for gRPC's buffers; it takes no room on the disk."""
    file = stage.weight_files[0].model_copy(update={"size_bytes": BIG_BYTES, "sha256": "b" * 64})
    folder = cache.partial_snapshot("ann/big", COMMIT)
    cache.link(folder, STAGE_FILE, cache.put(encode(stage.model_copy(update={"weight_files": (file,)}))))
    with cache.blob(file.sha256).open("wb") as blob:
        blob.truncate(BIG_BYTES)
    cache.finish("ann/big", COMMIT)
    return file


def begin(cache: Cache, shard: Path) -> None:
    """Put a shard's files into a cache as a fetch does before its end."""
    for path in shard.iterdir():
        cache.link(cache.partial_snapshot(REPO, COMMIT), path.name, cache.put(path.read_bytes()))


async def rest_of(stream: FileStream) -> bytes:
    """The bytes of a stream up to its end."""
    data = b""
    while part := await stream.read():
        data += part
    return data


@dataclass
class Reader:
    """A client of a node's files."""

    channel: grpc.aio.Channel
    address: str

    async def find(self, *digests: str) -> dict[str, int]:
        return dict((await find_files(self.channel, self.address, digests)).sizes)

    def stream(self, file: WeightFile, start: int = 0, stop: int | None = None) -> FileStream:
        stop = file.size_bytes if stop is None else stop
        return FileStream(self.channel, self.address, file.sha256, start, stop)

    async def read(self, file: WeightFile, start: int = 0, stop: int | None = None) -> bytes:
        return await rest_of(self.stream(file, start, stop))

    async def refusal(self, request: pb.FindRequest | pb.ReadRequest) -> ShardhubError:
        """The error that a raw call ends with; no file's byte came before."""
        stub = FilesStub(self.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (stub.Find(request) if isinstance(request, pb.FindRequest) else stub.Read(request).read())
        return from_rpc(caught.value, peer=self.address, doing="read")


@asynccontextmanager
async def reading(servicer: FileServicer, trust=None, security: Security = PLAIN) -> AsyncIterator[Reader]:
    """A client of a node with this service."""
    async with serving(servicer, trust) as address:
        opened = await open_channel(address, security, file_options())
        async with opened.channel:
            yield Reader(opened.channel, address)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@in_loop
async def test_weight_files_of_complete_shards_are_given_and_nothing_else(cache, stage, pipeline):
    """Of all that the cache has, exactly the weight files are given, with their sizes; documents are not."""
    shard = cut.shard_folder(pipeline, 0)
    async with reading(await servicer_of(cache)) as reader:
        everything = [path.name for path in cache.blobs.iterdir()]
        assert await reader.find(*everything) == {file.sha256: file.size_bytes for file in stage.weight_files}
        for file in stage.weight_files:
            assert await reader.read(file) == (shard / file.name).read_bytes()
        document = sha256_of(shard / CONFIG_FILE)
        assert document in everything
        refused = await reader.refusal(pb.ReadRequest(sha256=bytes.fromhex(document), stop=1))
    assert isinstance(refused, NotFound)


@in_loop
async def test_of_a_shard_that_is_being_fetched_whole_files_are_given(tmp_path, pipeline, stage):
    """While a shard is fetched, each of its files is given as soon as it is whole and checked, and none before."""
    cache = Cache(tmp_path / "new")
    cache.prepare()
    first, second, *_ = stage.weight_files
    shard = cut.shard_folder(pipeline, 0)
    folder = cache.partial_snapshot(REPO, COMMIT)
    async with reading(await servicer_of(cache)) as reader:
        cache.link(folder, STAGE_FILE, cache.put((shard / STAGE_FILE).read_bytes()))
        data = (shard / second.name).read_bytes()
        cache.partial(second.sha256, is_locked=True).write_bytes(data)
        assert await reader.find(first.sha256, second.sha256) == {}
        assert isinstance(await reader.refusal(_whole(second)), NotFound)
        cache.link(folder, first.name, cache.put((shard / first.name).read_bytes()))
        assert await reader.find(first.sha256, second.sha256) == {first.sha256: first.size_bytes}
        assert await reader.read(first) == (shard / first.name).read_bytes()


@in_loop
async def test_a_shard_that_somebody_put_into_the_cache_is_not_given(cache, tmp_path, big):
    """A folder with a file that is no link into the cache is passed over, and so is all that it names."""
    folder = cache.snapshot("ann/big", COMMIT)
    (folder / "notes.txt").write_text("by hand")
    async with reading(await servicer_of(cache)) as reader:
        assert await reader.find(big.sha256) == {}


@pytest.mark.parametrize("damage", ["shorter", "a link", "gone"])
@in_loop
async def test_a_damaged_file_is_not_given_and_not_touched(damage, cache, stage, tmp_path):
    """A file with another size, a link in its place, or none: the node says that it does not have it."""
    first, *others = stage.weight_files
    blob = cache.blob(first.sha256)
    data = blob.read_bytes()
    async with reading(await servicer_of(cache)) as reader:
        assert await reader.find(first.sha256) == {first.sha256: first.size_bytes}
        blob.unlink()
        if damage == "shorter":
            blob.write_bytes(data[:-1])
        elif damage == "a link":
            (tmp_path / "elsewhere").write_bytes(data)
            blob.symlink_to(tmp_path / "elsewhere")
        sizes = await reader.find(*(file.sha256 for file in stage.weight_files))
        assert sizes == {file.sha256: file.size_bytes for file in others}
        assert isinstance(await reader.refusal(_whole(first)), NotFound)
    assert blob.is_symlink() == (damage == "a link")
    assert blob.exists() == (damage != "gone")


def _whole(file: WeightFile) -> pb.ReadRequest:
    return pb.ReadRequest(sha256=bytes.fromhex(file.sha256), stop=file.size_bytes)


@in_loop
async def test_ranges_are_half_open(cache, stage, pipeline):
    """Any range comes exactly, in chunks; an empty one is empty."""
    file = max(stage.weight_files, key=lambda file: file.size_bytes)
    data = (cut.shard_folder(pipeline, 0) / file.name).read_bytes()
    async with reading(await servicer_of(cache)) as reader:
        for start, stop in ((0, 1), (1, len(data)), (len(data) - 1, len(data)), (7, 7), (100, 1000)):
            assert await reader.read(file, start, stop) == data[start:stop]


@in_loop
async def test_malformed_requests_are_refused(cache, stage):
    """Names that are not 32 bytes, too many of them, and ranges beyond the file: WireError, and no byte."""
    file = stage.weight_files[0]
    sha256, size = bytes.fromhex(file.sha256), file.size_bytes
    async with reading(await servicer_of(cache)) as reader:
        for name in (b"", sha256[:-1], sha256 + b"\0", b"../" * 11, file.sha256.encode()):
            assert isinstance(await reader.refusal(pb.FindRequest(sha256=[name])), WireError)
            assert isinstance(await reader.refusal(pb.ReadRequest(sha256=name, stop=1)), WireError)
        many = pb.FindRequest(sha256=[sha256] * (MAX_FILES_ASKED + 1))
        assert isinstance(await reader.refusal(many), WireError)
        for start, stop in ((0, size + 1), (2, 1), (size + 1, size + 2), (0, 2**64 - 1)):
            request = pb.ReadRequest(sha256=sha256, start=start, stop=stop)
            assert isinstance(await reader.refusal(request), WireError)


@in_loop
async def test_many_files_are_asked_for_in_parts(cache, stage):
    """More files than a message may name are asked for in several."""
    file = stage.weight_files[0]
    unknown = [f"{number:064x}" for number in range(MAX_FILES_ASKED + 1)]
    async with reading(await servicer_of(cache)) as reader:
        assert await reader.find(*unknown, file.sha256) == {file.sha256: file.size_bytes}


@in_loop
async def test_a_node_that_does_not_share_has_nothing(stage):
    """Without sharing the node answers that it has none of the files, and sends none."""
    async with reading(await servicer_of(None)) as reader:
        assert await reader.find(stage.weight_files[0].sha256) == {}
        assert isinstance(await reader.refusal(_whole(stage.weight_files[0])), NotFound)


# Bounds


@in_loop
async def test_transfers_at_once_are_bounded(cache, big):
    """One more than the limit is refused as busy; when another one ends there is room again."""
    servicer = await servicer_of(cache)
    async with reading(servicer) as reader:
        streams = [reader.stream(big) for _ in range(MAX_TRANSFERS)]
        for stream in streams:
            assert await stream.read()
        assert isinstance(await reader.refusal(_whole(big)), Overloaded)
        assert servicer.load()["shared_transfers"] == MAX_TRANSFERS
        streams[0].cancel()
        await until(lambda: _is_free(servicer))
        assert await reader.stream(big).read()


async def _is_free(servicer: FileServicer) -> bool:
    return servicer.load()["shared_transfers"] < MAX_TRANSFERS


@in_loop
async def test_a_reader_that_takes_nothing_loses_its_place(cache, big):
    """Whoever does not read ends with an error, and makes room."""
    servicer = await servicer_of(cache, write_timeout_s=0.2)
    async with reading(servicer) as reader:
        stream = reader.stream(big)
        assert await stream.read()
        await until(lambda: _is_idle(servicer))
        with pytest.raises(NodeLost, match="No chunk was taken"):
            await rest_of(stream)


async def _is_idle(servicer: FileServicer) -> bool:
    return servicer.load()["shared_transfers"] == 0


# Behind steps


@dataclass
class Computing:
    """Steps as a test sets them."""

    num_sessions: int
    busy_s: float


def under_load(cache: Cache, steps: Computing, clock: VirtualClock, bytes_per_s: int = 1 << 40) -> FileServicer:
    servicer = FileServicer(Sharing(cache=cache, bytes_per_s=bytes_per_s), message_bytes=MESSAGE_BYTES, clock=clock)
    servicer.yield_to(steps)
    return servicer


@in_loop
async def test_the_rate_is_kept_while_sessions_are_open(cache, big):
    """With sessions, all transfers together keep the rate; without, none waits."""
    steps, clock = Computing(num_sessions=1, busy_s=0.0), VirtualClock()
    servicer = under_load(cache, steps, clock, bytes_per_s=10 * CHUNK_BYTES)

    async def waits(num_chunks: int) -> bool:
        return servicer.load()["shared_bytes"] == num_chunks * CHUNK_BYTES and clock.num_timers == 2

    async with reading(servicer) as reader:
        both = [asyncio.create_task(reader.read(big, 0, 40 * CHUNK_BYTES)) for _ in range(2)]
        for num_chunks in range(1, 5):
            await until(lambda num_chunks=num_chunks: waits(num_chunks))
            await clock.advance(0.1)
        await until(lambda: waits(5))
        steps.num_sessions = 0
        await clock.advance(0.2)
        assert [len(data) for data in await asyncio.gather(*both)] == [40 * CHUNK_BYTES] * 2


@in_loop
async def test_a_chunk_waits_for_the_step_that_runs_but_not_for_ever(cache, big):
    """While a step runs no chunk is sent, for a moment at most; between steps all are."""
    steps, clock = Computing(num_sessions=1, busy_s=0.01), VirtualClock()
    servicer = under_load(cache, steps, clock)
    async with reading(servicer) as reader:
        data = asyncio.create_task(reader.read(big, 0, 3 * CHUNK_BYTES))
        await until(lambda: _has_timer(clock))
        assert servicer.load()["shared_bytes"] == 0
        for _ in range(100):
            await clock.advance(0.002)
            if servicer.load()["shared_bytes"]:
                break
        assert 0.048 <= clock.now() - 1000.0 <= 0.2
        assert not data.done()
        steps.busy_s = 0.0
        await until(lambda: _has_timer(clock))
        await clock.advance(0.01)
        assert len(await data) == 3 * CHUNK_BYTES


async def _has_timer(clock: VirtualClock) -> bool:
    return clock.num_timers > 0


# Certificates


@in_loop
async def test_strangers_read_nothing(cache, stage, tmp_path):
    """A caller without a certificate, or with another cluster's, gets as far as the handshake."""
    cluster, other = Cluster(tmp_path / "one"), Cluster(tmp_path / "two")
    node = cluster.trust("mini", Role.NODE)
    async with serving(await servicer_of(cache), node) as address:
        async with grpc.aio.insecure_channel(address, options=file_options()) as channel:
            with pytest.raises(ShardhubError):
                await find_files(channel, address, [stage.weight_files[0].sha256])
        security = Security(trust=other.trust("new", Role.NODE), everywhere=True)
        with pytest.raises(CertificateRefused):
            await open_channel(address, security, file_options())


@in_loop
async def test_a_revoked_reader_is_cut_off_in_the_middle(cache, big, tmp_path):
    """When the node learns of a revocation, the revoked machine's stream ends, and it gets no other."""
    cluster = Cluster(tmp_path / "one")
    node, new = cluster.trust("mini", Role.NODE), cluster.trust("new", Role.NODE)
    async with reading(await servicer_of(cache), node, Security(trust=new, everywhere=True)) as reader:
        stream = reader.stream(big)
        assert await stream.read()
        node.learn(cluster.authority.revoke("new", now=NOW).pem)
        with pytest.raises(CertificateRefused, match="revoked"):
            await asyncio.wait_for(rest_of(stream), HEARD_S)
        assert isinstance(await reader.refusal(_whole(big)), CertificateRefused)


@in_loop
async def test_only_heads_tell_of_other_nodes(cache, tmp_path):
    """A node is told addresses by a head of its cluster, at most 64 at once; another node is refused."""
    cluster = Cluster(tmp_path / "one")
    known: list[str] = []
    servicer = FileServicer(Sharing(cache=cache, on_introduced=known.extend), message_bytes=MESSAGE_BYTES)
    mini, desk, other = (
        cluster.trust("mini", Role.NODE),
        cluster.trust("desk", Role.HEAD),
        cluster.trust("new", Role.NODE),
    )
    async with serving(servicer, mini) as address:
        for trust in (desk, other):
            opened = await open_channel(address, Security(trust=trust, everywhere=True), file_options())
            async with opened.channel as channel:
                if trust is desk:
                    await introduce(channel, address, ["10.77.0.1:1", "10.77.0.2:2"])
                    many = pb.IntroduceRequest(addresses=["10.77.0.3:3"] * (MAX_NODES_KEPT + 1))
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await FilesStub(channel).Introduce(many)
                    assert isinstance(from_rpc(caught.value, peer=address, doing="introduce"), WireError)
                else:
                    with pytest.raises(AccessError, match="Only a head"):
                        await introduce(channel, address, ["10.77.0.4:4"])
    assert known == ["10.77.0.1:1", "10.77.0.2:2"]


@in_loop
async def test_callers_that_answer_are_met(cache, stage):
    """Whoever asks and names its port is known by the address it calls from; a port that cannot be is ignored."""
    met: list[str] = []
    servicer = FileServicer(Sharing(cache=cache, on_asked=met.append), message_bytes=MESSAGE_BYTES)
    async with reading(servicer) as reader:
        for port in (0, 50051, 65536, 2**32 - 1):
            await find_files(reader.channel, reader.address, [stage.weight_files[0].sha256], port=port)
    assert met == ["127.0.0.1:50051"]

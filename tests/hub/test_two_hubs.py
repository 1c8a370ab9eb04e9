"""A model on one Hub, and its pipeline on another: names, tokens and errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from starlette.types import ASGIApp, Receive, Scope, Send

from shardhub.errors import AccessError, NotFound, UsageError
from shardhub.hub.cache import Cache
from shardhub.hub.fetch import Fetcher
from shardhub.hub.push_decisions import Action
from shardhub.hub.reference import PUBLIC_ENDPOINT, Reference, parse_source
from shardhub.localhub import server
from shardhub.localhub.server import RunningHub, running_hub
from shardhub.shard import read_shard
from shardhub.usecases.cut import Cut
from shardhub.usecases.parity import ParitySettings
from shardhub.usecases.plan import PlanSettings, plan
from shardhub.usecases.publish import PublishSettings, publish
from shardhub.usecases.refer import Refer
from shardhub.usecases.verify_source import SourceSettings, verify_source
from tests.hub.published import OVER_LFS

pytestmark = OVER_LFS
MODEL = "org/model"


@dataclass
class TwoHubs:
    """A Hub with a model, and the one that the environment names.

    Attributes:
        tokens: Values of the Authorization header that each Hub was sent, by port.
    """

    source: RunningHub
    target: RunningHub
    tokens: dict[int, set[str]]


@pytest.fixture(scope="module")
def hubs(whole_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHubs]:
    """A Hub that has a public and a private model, and an empty one."""
    tokens: dict[int, set[str]] = {}
    build = server.build_app

    def watched(*args, **options) -> ASGIApp:
        app = build(*args, **options)

        async def watch(scope: Scope, receive: Receive, send: Send) -> None:
            headers = dict(scope.get("headers", []))
            if b"authorization" in headers:
                tokens.setdefault(scope["server"][1], set()).add(headers[b"authorization"].decode())
            await app(scope, receive, send)

        return watch

    work = tmp_path_factory.mktemp("two-hubs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "build_app", watched)
        with running_hub(work / "source") as source, running_hub(work / "target") as target:
            api = HfApi(endpoint=source.endpoint, token=source.token("org"))
            for name, private in ((MODEL, False), ("org/secret", True)):
                api.create_repo(name, private=private)
                api.upload_folder(repo_id=name, folder_path=whole_model)
            yield TwoHubs(source=source, target=target, tokens=tokens)


@pytest.fixture(autouse=True)
def environment(hubs: TwoHubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of the target Hub."""
    hubs.tokens.clear()
    monkeypatch.setenv("HF_ENDPOINT", hubs.target.endpoint)
    monkeypatch.setenv("HF_TOKEN", hubs.target.token("ann"))
    monkeypatch.setenv("SHARDHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SHARDHUB_SOURCE_TOKEN", raising=False)


@pytest.fixture(autouse=True)
def hubs_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the user names other Hubs, which does not exist yet."""
    path = tmp_path / "hubs.toml"
    monkeypatch.setenv("SHARDHUB_HUBS", str(path))
    return path


def quick(endpoint: str | None = None) -> PlanSettings:
    return PlanSettings(proof=False, source_endpoint=endpoint)


def test_model_on_another_hub_is_planned_by_url_or_endpoint(hubs: TwoHubs) -> None:
    url = f"{hubs.source.endpoint}/{MODEL}"
    by_url = plan(url, settings=quick())
    by_endpoint = plan(MODEL, settings=quick(f"{hubs.source.endpoint}/"))
    at_revision = plan(f"{url}/tree/main", settings=quick())
    assert by_url.model.source == by_endpoint.model.source == at_revision.model.source
    assert by_url.model.source.repo == MODEL
    assert by_url.model.endpoint == by_endpoint.model.endpoint == hubs.source.endpoint
    assert hubs.source.port not in hubs.tokens


def test_model_is_published_from_one_hub_on_another(hubs: TwoHubs) -> None:
    """Shards and pipeline are on the environment's Hub; its token is sent to no other, nor the other's to it."""
    settings = PublishSettings(source_endpoint=hubs.source.endpoint, assume_yes=True, parity=ParitySettings(skip=True))
    done = publish(MODEL, Cut(stages=2), settings)
    assert done.pipeline == "ann/model-pipeline"
    assert set(hubs.tokens) == {hubs.target.port}
    api = HfApi(endpoint=hubs.target.endpoint, token=hubs.target.token("ann"))
    assert api.repo_exists("ann/model-shard-1")
    with pytest.raises(NotFound):
        verify_source(done.pipeline, SourceSettings(fetch=True))
    assert verify_source(done.pipeline, SourceSettings(fetch=True, source_endpoint=hubs.source.endpoint)).ok


def test_each_hub_gets_its_own_token(hubs: TwoHubs, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((NotFound, AccessError), match="private") as refused:
        plan("org/secret", settings=quick(hubs.source.endpoint))
    assert "SHARDHUB_SOURCE_TOKEN" in refused.value.hint
    assert "no token" in refused.value.why
    assert hubs.tokens == {}
    token = hubs.source.token("org", role="read")
    monkeypatch.setenv("SHARDHUB_SOURCE_TOKEN", token)
    assert plan("org/secret", settings=quick(hubs.source.endpoint)).model.source.repo == "org/secret"
    with pytest.raises((NotFound, AccessError)):
        plan("ann/absent", settings=quick())
    assert hubs.tokens[hubs.source.port] == {f"Bearer {token}"}
    assert f"Bearer {token}" not in hubs.tokens[hubs.target.port]


def test_wrong_endpoint_is_named_with_the_two_ways_out(hubs: TwoHubs) -> None:
    """A model that the environment's Hub does not have may be on another, and the error says how to name it."""
    with pytest.raises(NotFound) as error:
        plan(MODEL, settings=quick())
    assert f"HF_ENDPOINT names {hubs.target.endpoint}" in error.value.hint
    assert f"{PUBLIC_ENDPOINT}/ORG/NAME" in error.value.hint
    assert "`source_endpoint`" in error.value.hint
    with pytest.raises(NotFound) as elsewhere:
        plan("org/absent", settings=quick(hubs.source.endpoint))
    assert "HF_ENDPOINT" not in elsewhere.value.hint


def test_reference_to_a_hub_without_a_name_is_refused_before_the_proof(hubs: TwoHubs, hubs_file: Path) -> None:
    settings = PublishSettings(source_endpoint=hubs.source.endpoint, by_reference=True)
    with pytest.raises(UsageError, match="would be at") as refused:
        publish(MODEL, Cut(stages=2), settings)
    assert str(hubs_file) in refused.value.why
    assert f'endpoint = "{hubs.source.endpoint}"' in refused.value.hint


def test_reference_to_a_named_hub_is_fetched_from_there(hubs: TwoHubs, hubs_file: Path, tmp_path: Path) -> None:
    """No weights are uploaded, documents name the source's Hub, and its token is sent to no other."""
    token = hubs.source.token("org", role="read")
    hubs_file.write_text(f'[home]\nendpoint = "{hubs.source.endpoint}"\ntoken = "{token}"\n')
    hubs_file.chmod(0o600)
    settings = PublishSettings(
        source_endpoint=hubs.source.endpoint,
        by_reference=True,
        name="referred",
        private=True,
        parity=ParitySettings(skip=True),
    )
    done = publish("org/secret", Cut(stages=2), settings)
    api = HfApi(endpoint=hubs.target.endpoint, token=hubs.target.token("ann"))
    assert not [name for name in api.list_repo_files(done.shards[0]) if name.endswith(".safetensors")]
    shard = Fetcher(lambda: api, Cache(tmp_path / "other")).fetch(Reference(repo=done.shards[0]))
    assert read_shard(shard).stage.source.repo == "org/secret"
    assert hubs.tokens[hubs.source.port] == {f"Bearer {token}"}
    assert f"Bearer {token}" not in hubs.tokens[hubs.target.port]
    compared = verify_source(done.pipeline, SourceSettings(fetch=True, cache_dir=tmp_path / "other"))
    assert compared.ok
    assert compared.num_compared == compared.num_tensors > 0


def test_uploaded_pipeline_gets_places_on_another_hub(hubs: TwoHubs, hubs_file: Path, tmp_path: Path) -> None:
    """Without a name for the source's Hub nothing is written; with one, nodes fetch from there."""
    settings = PublishSettings(
        source_endpoint=hubs.source.endpoint, name="later", assume_yes=True, parity=ParitySettings(skip=True)
    )
    done = publish(MODEL, Cut(stages=2), settings)
    with pytest.raises(NotFound):
        Refer(done.pipeline)
    with pytest.raises(UsageError, match="would be at"):
        Refer(done.pipeline, endpoint=hubs.source.endpoint)
    hubs_file.write_text(f'[home]\nendpoint = "{hubs.source.endpoint}"\n')
    made = Refer(done.pipeline, endpoint=hubs.source.endpoint, drop_copies=True).run()
    assert made.dropped_bytes > 0
    api = HfApi(endpoint=hubs.target.endpoint, token=hubs.target.token("ann"))
    shard = Fetcher(lambda: api, Cache(tmp_path / "other")).fetch(Reference(repo=done.shards[1]))
    assert read_shard(shard).digest == done.pushed.stage_digests[1]
    again = Refer(done.pipeline).run()  # the manifest names the source's Hub by now
    assert [at.action for at in (*again.shards, again.pipeline)] == [Action.KEEP] * 3
    assert hubs.source.port not in hubs.tokens


def test_own_hubs_url_names_no_other(hubs: TwoHubs) -> None:
    with pytest.raises(NotFound) as error:
        plan(f"{hubs.target.endpoint}/{MODEL}", settings=quick())
    assert "no token" not in error.value.why


@pytest.mark.parametrize(
    ("text", "endpoint", "expected"),
    [
        ("org/m", None, (Reference(repo="org/m"), None)),
        ("org/m@v1", "http://hub:1/", (Reference(repo="org/m", revision="v1"), "http://hub:1")),
        ("http://hub:1/org/m", None, (Reference(repo="org/m"), "http://hub:1")),
        ("http://hub:1/org/m", "http://hub:1/", (Reference(repo="org/m"), "http://hub:1")),
        ("http://hub:1/org/m/", None, (Reference(repo="org/m"), "http://hub:1")),
        ("http://hub:1/org/m@v1", None, (Reference(repo="org/m", revision="v1"), "http://hub:1")),
        ("https://hub/org/m/tree/dev/x", None, (Reference(repo="org/m", revision="dev/x"), "https://hub")),
        ("https://hf.co/org/m", None, (Reference(repo="org/m"), PUBLIC_ENDPOINT)),
        ("/a/folder", "http://hub:1", (Path("/a/folder"), None)),
        (Path("org/m"), "http://hub:1", (Path("org/m"), None)),
    ],
)
def test_source_is_parsed(text: str | Path, endpoint: str | None, expected: tuple[object, str | None]) -> None:
    assert parse_source(text, endpoint) == expected


def test_url_is_never_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_source("http://hub:1/org/m", None) == (Reference(repo="org/m"), "http://hub:1")
    with pytest.raises(UsageError, match="not the URL of a model"):
        parse_source("http://hub:1/org", None)


def test_url_of_another_hub_than_the_endpoint_is_refused() -> None:
    with pytest.raises(UsageError, match="is not on the Hub at"):
        parse_source("http://hub:1/org/m", "http://other:1")

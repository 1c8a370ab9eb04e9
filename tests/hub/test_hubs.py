"""Sources on another Hub than the shards: documents name it, and each user's settings say where it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from shardhub.errors import ShardhubError, UsageError
from shardhub.hub.cache import Cache
from shardhub.hub.calls import HubCalls
from shardhub.hub.client import hub_api
from shardhub.hub.fetch import Fetcher
from shardhub.hub.hubs import PUBLIC_HUB, known_hubs, name_of, named_hub
from shardhub.hub.publish import Published, publish
from shardhub.hub.push_journal import PushJournal
from shardhub.hub.push_plan import plan_push
from shardhub.hub.ranges import Patience
from shardhub.hub.reference import Reference
from shardhub.localhub.server import RunningHub, running_hub
from shardhub.manifest import Manifest, SourceLocation, decode_identified
from shardhub.naming import CARD_FILE, MANIFEST_FILE, RANGES_FILE
from shardhub.splitting.job import prepare
from tests.checkpoints import contents_of, stages_of, write_checkpoint
from tests.hub import faulty
from tests.hub.published import OVER_LFS
from tests.hub.referring import open_remote, upload_model

pytestmark = OVER_LFS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """Another Hub, which has the model."""
    with running_hub(tmp_path_factory.mktemp("home") / "hub") as running:
        yield running


@pytest.fixture(scope="module")
def away(
    shared_hub: RunningHub, home: RunningHub, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Published, str, Path]:
    """A pipeline whose source is a private model of the Hub `home`; the model's repo, and its folder."""
    folder, work = tmp_path_factory.mktemp("model") / "model", tmp_path_factory.mktemp("away")
    write_checkpoint(folder, 4, rows=512, tied=False)
    source = hub_api(home.endpoint, home.token("eve"))
    repo = source.create_repo("eve/model", private=True).repo_id
    upload_model(source, "eve", folder)
    model = open_remote(source, repo, work)
    calls = HubCalls(api=hub_api(shared_hub.endpoint, shared_hub.token("ann")))
    journal = PushJournal(work / "push")
    job = prepare(
        model.checkpoint,
        contents_of(model.checkpoint),
        stages_of(model.checkpoint, [2]),
        work / "nowhere",
        name="away",
        source=model.source,
        namespace="ann",
        by_reference=True,
        source_hub="home",
    )
    return publish(plan_push(job, calls, journal), calls, journal, work / "push"), repo, folder


@pytest.fixture
def hubs_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the user names Hubs; none yet."""
    path = tmp_path / "hubs.toml"
    monkeypatch.setenv("SHARDHUB_HUBS", str(path))
    return path


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def test_documents_name_the_hub(away: tuple[Published, str, Path], api: HfApi) -> None:
    """Ranges and manifest hold its name and no address; cards say it and do not link to a repo that is not there."""
    published, repo, _ = away
    at = published.shards[0]
    assert json.loads(Path(api.hf_hub_download(at.repo, RANGES_FILE)).read_text())["hub"] == "home"
    path = Path(api.hf_hub_download(published.pipeline.repo, MANIFEST_FILE))
    manifest = decode_identified(Manifest, path.read_bytes(), where=str(path))
    places = [place for stage in manifest.stages for place in stage.locations if isinstance(place, SourceLocation)]
    assert [place.hub for place in places] == ["home", "home"]
    for name in (at.repo, published.pipeline.repo):
        card = Path(api.hf_hub_download(name, CARD_FILE)).read_text()
        assert f"`{repo}` on the Hub `home`" in card


def test_weights_are_fetched_from_the_named_hub(
    away: tuple[Published, str, Path],
    home: RunningHub,
    reader: HfApi,
    net: faulty.Network,
    hubs_file: Path,
    tmp_path: Path,
    patience: Patience,
) -> None:
    """Documents come from the one Hub and bytes from the other, each with the token that it was given, and no other."""
    published, repo, folder = away
    at = published.shards[0]
    token, tokens = home.token("eve"), {"here": set[str | None](), "home": set[str | None]()}
    net.on_token = tokens["here"].add
    with faulty.network(home.endpoint) as there:
        there.on_token = tokens["home"].add
        write(hubs_file, f'[home]\nendpoint = "{there.endpoint}/"\ntoken = "{token}"\n')
        fetcher = Fetcher(lambda: reader, Cache(tmp_path / "cache"), patience=patience)
        shard = fetcher.fetch(Reference(repo=at.repo, revision=at.commit))
        assert there.fetched(".safetensors") > 0
    assert not [path for _, path, _ in net.requests if path.startswith(f"/{repo}/")]
    assert tokens == {"here": {f"Bearer {reader.token}"}, "home": {f"Bearer {token}"}}
    layers = sum(path.stat().st_size for path in shard.glob("*.safetensors"))
    assert 0 < layers < sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    fetcher.cache.release()


def test_own_token_is_not_sent_to_another_hub(
    away: tuple[Published, str, Path],
    home: RunningHub,
    reader: HfApi,
    hubs_file: Path,
    tmp_path: Path,
    patience: Patience,
) -> None:
    """A Hub without a token in the settings is read as anybody may, and its private model is not."""
    published, repo, _ = away
    at = published.shards[0]
    with faulty.network(home.endpoint) as there:
        tokens: set[str | None] = set()
        there.on_token = tokens.add
        write(hubs_file, f'[home]\nendpoint = "{there.endpoint}"\n')
        with pytest.raises(ShardhubError, match=repo):
            Fetcher(lambda: reader, Cache(tmp_path / "cache"), patience=patience).fetch(
                Reference(repo=at.repo, revision=at.commit)
            )
    assert tokens == {None}


def test_hub_without_an_address_is_asked_for(
    away: tuple[Published, str, Path], fetcher: Fetcher, hubs_file: Path
) -> None:
    """The error says which name has no address, and where to write it."""
    at = away[0].shards[0]
    with pytest.raises(UsageError, match="not known here: 'home'") as caught:
        fetcher.fetch(Reference(repo=at.repo, revision=at.commit))
    assert str(hubs_file) in caught.value.why


def test_public_hub_is_known(hubs_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file too; the token for another Hub stays there, and the public Hub's own is used for it."""
    assert set(known_hubs()) == {PUBLIC_HUB}
    assert name_of("https://huggingface.co/") == PUBLIC_HUB
    monkeypatch.setenv("HF_TOKEN", "hf_own")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert named_hub(PUBLIC_HUB).token is False
    monkeypatch.setenv("HF_ENDPOINT", "https://huggingface.co")
    assert named_hub(PUBLIC_HUB).token is None
    write(hubs_file, '[home]\nendpoint = "http://127.0.0.1:1/"\ntoken = "hf_home"\n')
    assert (named_hub("home").endpoint, named_hub("home").token) == ("http://127.0.0.1:1", "hf_home")
    assert name_of("http://127.0.0.1:1") == "home"
    assert name_of("http://127.0.0.1:2") is None


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("[home", 0o600, "cannot be read"),
        ("[home]\n", 0o600, "needs an endpoint"),
        ('home = "https://example.org"\n', 0o600, "needs an endpoint"),
        ('[home]\nendpoint = "example.org"\n', 0o600, "not the URL of a Hub"),
        ("[home]\nendpoint = 1\n", 0o600, "are not texts"),
        ('[home]\nendpoint = "https://example.org"\nport = "1"\n', 0o600, "may have a token"),
        ('["Home!"]\nendpoint = "https://example.org"\n', 0o600, "is not a name"),
        ('[home]\nendpoint = "https://example.org"\ntoken = "hf_x"\n', 0o644, "other users of this machine can read"),
    ],
)
def test_wrong_file_is_refused(hubs_file: Path, text: str, mode: int, message: str) -> None:
    """With what is wrong, and never with a token."""
    write(hubs_file, text, mode)
    with pytest.raises(UsageError, match=message) as caught:
        known_hubs()
    assert "hf_x" not in str(caught.value)

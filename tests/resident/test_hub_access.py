"""The Hub of a member that gives an order, in the processes of other machines."""

from __future__ import annotations

import dataclasses
import json
import traceback

import pytest

from shardhub.errors import FormatError, UsageError
from shardhub.hub.reference import PUBLIC_ENDPOINT
from shardhub.resident.deployments import Assignment, Deployment
from shardhub.resident.hub_access import HubAccess
from shardhub.resident.kept import ClusterFolder, TokensFile
from shardhub.resident.link import GrpcResidents, want_message
from shardhub.resident.machine import Introduction, MachineFacts
from shardhub.resident.order import Order
from shardhub.resident.server import ResidentServer
from shardhub.security.certificates import Role
from shardhub.security.trust import Security, Trust
from tests.resident.network import Machine, Network
from tests.security.cluster import Cluster
from tests.security.loop import in_loop

OWN = "https://hub.example:8090"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        # The machine names no Hub: it takes the member's, with the token that came along.
        ({}, {"HF_ENDPOINT": OWN, "HF_TOKEN": "sent"}),
        # It names another one, whose token does not go to the member's Hub.
        ({"HF_ENDPOINT": "https://other.example", "HF_TOKEN": "other"}, {"HF_ENDPOINT": OWN, "HF_TOKEN": "sent"}),
        ({"HUGGING_FACE_HUB_TOKEN": "public"}, {"HF_ENDPOINT": OWN, "HF_TOKEN": "sent"}),
        # It names the same: its own token goes first.
        ({"HF_ENDPOINT": OWN + "/", "HF_TOKEN": "own"}, {"HF_ENDPOINT": OWN + "/", "HF_TOKEN": "own"}),
        ({"HF_ENDPOINT": OWN}, {"HF_ENDPOINT": OWN, "HF_TOKEN": "sent"}),
    ],
)
def test_a_token_goes_only_to_the_hub_that_it_was_given_for(own: dict[str, str], expected: dict[str, str]) -> None:
    """A process reads from the member's Hub; of two tokens for it the machine's own is used, and no other Hub's."""
    assert HubAccess(endpoint=OWN, token="sent").environment({"PATH": "/bin", **own}) == {"PATH": "/bin", **expected}


def test_without_a_token_none_is_sent_to_another_hub() -> None:
    """Where no token came along, one that is saved on the machine for its own Hub is not sent."""
    environment = HubAccess(endpoint=OWN).environment({"HF_TOKEN": "public"})
    assert environment == {"HF_ENDPOINT": OWN, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


def test_the_public_hub_is_the_one_of_an_environment_that_names_none() -> None:
    """Without HF_ENDPOINT the public Hub is meant, and a machine that names none uses what it has."""
    access = HubAccess.of_environment({})
    assert access == HubAccess(endpoint=PUBLIC_ENDPOINT)
    assert access.environment({"HOME": "/root"}) == {"HOME": "/root"}


@pytest.mark.parametrize("token", ["hf_secret ", "hf_secret\r", "\thf_secret\r\n"])
def test_blanks_and_line_ends_around_a_token_are_left_out(token: str) -> None:
    """They come with copying, and with files that were written on Windows."""
    access = HubAccess.of_environment({"HF_ENDPOINT": f"{OWN}/\r", "HF_TOKEN": token})
    assert access == HubAccess(endpoint=OWN, token="hf_secret")
    assert HubAccess.of_environment({"HF_TOKEN": " ", "HUGGING_FACE_HUB_TOKEN": token}).token == "hf_secret"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HF_ENDPOINT": "hub.example:8090"}, "HF_ENDPOINT is 'hub.example:8090', which is not a URL"),
        ({"HF_TOKEN": "hf_first hf_second"}, "HF_TOKEN cannot be a token"),
        ({"HF_TOKEN": "x" * 5000}, "HF_TOKEN cannot be a token"),
    ],
)
def test_an_environment_that_names_no_hub_or_token_is_refused(environment: dict[str, str], message: str) -> None:
    """In words, and without the token."""
    with pytest.raises(UsageError, match=message) as refused:
        HubAccess.of_environment(environment)
    assert "hf_first" not in str(refused.value)


def test_tokens_are_kept_apart_from_orders(tmp_path) -> None:
    """A token is kept in a file that its owner alone may read, never in the order, and goes with the last order."""
    folder = ClusterFolder(tmp_path / "cluster")
    deployment = Deployment(
        name="pipe",
        counter=1,
        member="studio",
        pipeline_id="a" * 64,
        place="ann/pipe@main",
        hub=OWN,
        assignments=(Assignment(machine="mini", start=0, stop=4),),
    )
    order = Order(deployment=deployment, hub_token="hf_secret")
    assert "hf_secret" not in repr(order)
    folder.keep(order)
    files = {path.name: path for path in folder.path.rglob("*.json")}
    holding = {name for name, path in files.items() if "hf_secret" in path.read_text()}
    assert holding == {"hub_tokens.json"}
    assert files["hub_tokens.json"].stat().st_mode & 0o077 == 0
    (kept,) = folder.deployments()
    assert folder.order(kept) == order
    folder.forget_unused([])
    assert folder.hub_access(deployment) == HubAccess(endpoint=OWN)


def test_a_token_for_no_hub_is_refused() -> None:
    """An order with a token names the Hub that it is for."""
    with pytest.raises(FormatError, match="names no Hub"):
        Order(deployment=Deployment(name="pipe", counter=1, member="studio"), hub_token="t").check()


def order_with_token(machine: str = "mini") -> Order:
    """An order for a machine, with a token."""
    deployment = Deployment(
        name="pipe",
        counter=1,
        member="studio",
        pipeline_id="a" * 64,
        place="ann/pipe@main",
        hub=OWN,
        assignments=(Assignment(machine=machine, start=0, stop=4),),
    )
    return Order(deployment=deployment, hub_token="hf_secret")


@in_loop
async def test_a_token_goes_to_members_and_to_machines_that_serve(tmp_path) -> None:
    """Over TLS, a serve-only machine that introduces itself gets the token only with an order that names it."""
    cluster = Cluster(tmp_path / "cluster")
    server = ResidentServer("127.0.0.1", 0, trust=Trust(cluster.issue("studio", Role.MEMBER), Role.MEMBER))
    studio = Machine(Network(), tmp_path, "studio").start()
    await server.start(studio.resident)
    try:
        studio.resident.want(order_with_token("mini"))
        tokens = {}
        for name, role in (("mini", Role.NODE), ("guest", Role.NODE), ("box", Role.MEMBER)):
            security = Security(trust=Trust(cluster.issue(name, role), role), everywhere=True)
            link = await GrpcResidents(security).dial(f"127.0.0.1:{server.port}")
            facts = MachineFacts(name=name, boot_id="aa", shardhub="1")
            _, (order,) = await link.introduce(Introduction(at=0.0, facts=facts))
            tokens[name] = order.hub_token
            await link.close()
        assert tokens == {"mini": "hf_secret", "guest": None, "box": "hf_secret"}
    finally:
        await server.stop()
        await studio.stop()


@pytest.mark.parametrize(("is_local", "token"), [(True, "hf_secret"), (False, "")])
def test_without_tls_a_token_stays_on_its_machine(is_local: bool, token: str) -> None:
    """A plain channel to another machine carries the order without it."""
    assert want_message(order_with_token(), None, is_local=is_local).hub_token == token


def test_a_token_that_cannot_be_one_is_never_quoted(tmp_path, caplog) -> None:
    """Neither the refusal of an order nor the log of a damaged file has it."""
    secret = "hf_secret with a line\nend"
    order = dataclasses.replace(order_with_token(), hub_token=secret)
    with pytest.raises(FormatError) as refused:
        order.check()
    folder = ClusterFolder(tmp_path / "cluster")
    with pytest.raises(FormatError) as not_kept:
        folder.keep(order)
    (folder.path / "hub_tokens.json").write_text(
        json.dumps({"kind": "shardhub-hub-tokens", "format_version": 1, "tokens": {OWN: secret}})
    )
    assert folder.hub_access(order.deployment) == HubAccess(endpoint=OWN)
    said = [str(refused.value), *(line for line in traceback.format_exception(not_kept.value)), caplog.text]
    assert "is left out" in caplog.text
    assert not any("hf_secret" in text for text in said)
    with pytest.raises(ValueError, match="tokens") as invalid:
        TokensFile(tokens={OWN: secret})
    assert "hf_secret" not in str(invalid.value)

"""The command of a node: the words of `shardhub serve` for an order."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardhub.errors import FormatError
from shardhub.manifest import decode, encode
from shardhub.resident.deployments import HANDED_ON, Assignment, Capacity, Deployment
from shardhub.resident.nodes import orders_for
from shardhub.resident.words import NodeOptions, node_words


def deployment(**given) -> Deployment:
    """A pipeline of four shards on two machines."""
    settings = {
        "name": "pipe",
        "counter": 1,
        "member": "studio",
        "pipeline_id": "a" * 64,
        "place": "you/pipe@0123456",
        "borders": (0, 2, 4, 6, 8),
        "assignments": (Assignment(machine="box", start=0, stop=2), Assignment(machine="mini", start=2, stop=8)),
    }
    return Deployment(**(settings | given))


def words(machine: str, options: NodeOptions | None = None, **given) -> str:
    """The command for a machine."""
    (order,) = orders_for([deployment(**given)], machine)
    return " ".join(node_words(order, options or NodeOptions(), lambda pipeline_id: Path("/state") / pipeline_id[:2]))


def test_a_node_serves_the_shards_of_its_layers():
    """Shards are counted from 0; several adjacent ones are a range."""
    usual = "--host 127.0.0.1 --port 0 --max-sessions 16"
    assert words("box") == f"serve you/pipe@0123456 --stages 0 {usual}"
    assert words("mini") == f"serve you/pipe@0123456 --stages 1-3 {usual}"


def test_a_node_is_started_for_the_capacity_that_is_ordered():
    """Context, sessions and bits are those of the deployment; TLS is the machine's."""
    options = NodeOptions(host="0.0.0.0", tls=Path("/tls"), more=("--no-share",))
    given = {"capacity": Capacity(context=4096, max_sessions=2, kv_bits=8)}
    text = words("box", options, **given)
    assert text.endswith("--max-sessions 2 --context 4096 --kv-bits 8 --tls /tls --no-share")
    assert words("box", NodeOptions(insecure_lan=True)).endswith("--insecure-lan")


def test_a_pipeline_that_was_handed_on_is_served_from_its_folder():
    """Its place is the folder on each machine."""
    assert words("box", place=HANDED_ON).startswith("serve /state/aa --stages 0 ")


@pytest.mark.parametrize("place", ["--insecure-lan", "-h", "you/pipe\n--tls", ""])
def test_a_place_is_never_an_option(place):
    """An order whose place would be read as something else is refused."""
    data = encode(deployment()).replace(b"you/pipe@0123456", place.replace("\n", "\\n").encode())
    with pytest.raises(FormatError, match="place"):
        decode(Deployment, data, where="an order")


def test_layers_between_shards_are_refused():
    """A machine serves whole shards."""
    data = encode(deployment()).replace(b'"borders":[0,2,4,6,8]', b'"borders":[0,3,4,6,8]')
    with pytest.raises(FormatError, match="no shards are those of layers"):
        decode(Deployment, data, where="an order")

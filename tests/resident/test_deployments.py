"""Deployments: of all orders for a pipeline one holds, whole, whatever the order in which machines hear of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.errors import FormatError
from shardhub.manifest import decode, encode
from shardhub.resident.deployments import Assignment, Deployment, Deployments

MACHINES = ("box", "mini", "studio")


def deployment(*ranges, name="pipe", counter=1, member="studio", **given) -> Deployment:
    """A deployment of one chain, with these ranges on the machines in order."""
    assignments = tuple(
        Assignment(machine=machine, start=start, stop=stop)
        for machine, (start, stop) in zip(MACHINES, ranges, strict=False)
    )
    whole = {"pipeline_id": "a" * 64, "place": "you/pipe@0123456"} if assignments else {}
    return Deployment(name=name, counter=counter, member=member, assignments=assignments, **(whole | given))


orders = st.builds(
    deployment,
    st.just((0, 4)),
    name=st.sampled_from(["one", "two"]),
    counter=st.integers(1, 3),
    member=st.sampled_from(MACHINES),
)


@given(st.lists(orders, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(given_orders, random):
    """Two residents that hear the same orders in different orders, some twice, hold the same ones."""
    shuffled = given_orders + given_orders[:3]
    random.shuffle(shuffled)
    one, other = Deployments(), Deployments()
    for each in given_orders:
        one.take(each)
    for each in shuffled:
        other.take(each)
    assert one.orders() == other.orders()
    for name, order in one.orders().items():
        assert order == max(each.order for each in given_orders if each.name == name)


@given(st.lists(orders, max_size=8), st.lists(orders, max_size=8))
def test_one_exchange_makes_two_residents_agree(here, there):
    """What one lacks is what the other hands over, and nothing else."""
    one, other = Deployments(), Deployments()
    for held, given_orders in ((one, here), (other, there)):
        for each in given_orders:
            held.take(each)
    lacking = one.newer_than(other.orders())
    assert all(other.take(each) for each in lacking)
    for each in other.newer_than(one.orders()):
        assert one.take(each)
    assert list(one) == list(other)


def test_of_two_orders_given_at_once_one_wins_whole():
    """Both members count on from the same deployment; no machine follows a mixture."""
    held = Deployments()
    held.take(deployment((0, 2), (2, 4)))
    counter = held.next_counter("pipe")
    first = deployment((0, 1), (1, 4), counter=counter, member="mini")
    second = deployment((0, 3), (3, 4), counter=counter, member="studio")
    for two in ((first, second), (second, first)):
        resident = Deployments({"pipe": held.get("pipe")})
        for each in two:
            resident.take(each)
        assert resident.get("pipe") == second
        assert [(each.start, each.stop) for each in resident.get("pipe").of("mini")] == [(3, 4)]


def test_a_pipeline_that_was_ended_stays_ended():
    """An end is an order like any other: an older deployment that is heard later does not start it again."""
    held, before = Deployments(), deployment((0, 4))
    held.take(before)
    assert held.take(deployment(counter=2))
    assert not held.take(before)
    assert held.get("pipe").of("box") == ()
    assert held.next_counter("pipe") == 3


@pytest.mark.parametrize(
    ("ranges", "given"),
    [
        ([(1, 4)], {}),
        ([(0, 2), (3, 4)], {}),
        ([(0, 3), (2, 4)], {}),
        ([(0, 0)], {}),
        ([(0, 4)], {"place": None}),
        ([], {"pipeline_id": "a" * 64}),
        ([(0, 4)], {"member": "Not a name"}),
        ([(0, 4)], {"counter": 0}),
    ],
)
def test_a_deployment_is_whole(ranges, given):
    """Layers left out or assigned twice, and halves of an order, are refused."""
    with pytest.raises(ValueError, match=r".+"):
        deployment(*ranges, **given)


def test_a_machine_may_take_a_second_stage_of_a_chain():
    """It does when the machine that had it is gone; no layer is served twice in a chain."""
    stages = [Assignment(machine="mini", start=start, stop=start + 2) for start in (0, 2)]
    order = {"name": "pipe", "counter": 1, "member": "mini", "pipeline_id": "a" * 64, "place": "x"}
    assert Deployment(**order, assignments=tuple(stages)).of("mini") == tuple(stages)
    with pytest.raises(ValueError, match="has some twice"):
        Deployment(**order, assignments=(*stages, stages[0]))


def test_a_document_is_read_as_it_was_written():
    """It survives encoding; an unknown field is refused."""
    made = deployment((0, 2), (2, 4))
    assert decode(Deployment, encode(made), where="here") == made
    with pytest.raises(FormatError, match="extra"):
        decode(Deployment, encode(made).replace(b'{"', b'{"extra":1,"', 1), where="here")

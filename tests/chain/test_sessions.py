"""The table of a head's sessions: its counts, and that counting costs the same however many sessions there are."""

from __future__ import annotations

import random
from types import SimpleNamespace

from shardhub.chain.session import ChainSession, Path
from shardhub.chain.sessions import Sessions
from shardhub.clock import SYSTEM_DICE
from shardhub.parameters import SamplingParameters


class Link:
    """A link that is only compared and named."""

    name = "a node"


class CountedLinks(tuple[Link, ...]):
    """Links of a path that count how often they are iterated."""

    num_looks = 0

    def __contains__(self, link: object) -> bool:
        type(self).num_looks += 1
        return super().__contains__(link)

    def __iter__(self):
        type(self).num_looks += 1
        return super().__iter__()


def session_on(path: Path) -> ChainSession:
    chain = SimpleNamespace(dice=SYSTEM_DICE, left_open=lambda *_: None)
    return ChainSession(chain, path, context=8, parameters=SamplingParameters())


def test_counts_are_those_of_all_sessions_after_any_change() -> None:
    dice = random.Random(1)
    links = [Link() for _ in range(4)]
    paths = [Path(tuple(dice.sample(links, 2)), ()) for _ in range(5)]
    table, sessions = Sessions(), [session_on(dice.choice(paths)) for _ in range(30)]
    for _ in range(500):
        session = dice.choice(sessions)
        change = dice.choice((table.add, table.park, table.remove, lambda one: table.move(one, dice.choice(paths))))
        if change == table.add and table.get(session.id) is not None:
            continue
        change(session)
        for link in links:
            on_it = [one for one in table.values() if link in one.path.links]
            assert table.on(link) == on_it
            assert table.num_running(link) == sum(not one.is_parked for one in on_it)
    for session in sessions:
        table.remove(session)
    assert not len(table)
    assert not table._on_path
    assert not table._running_on


def test_no_question_goes_through_all_sessions() -> None:
    link = Link()
    path = Path(CountedLinks((link, Link())), ())
    table = Sessions()
    for _ in range(1000):
        table.add(session_on(path))
    before = CountedLinks.num_looks
    assert table.num_running(link) == 1000
    assert len(table.on(link)) == 1000
    assert CountedLinks.num_looks - before == 1
    table.add(session_on(path))
    assert CountedLinks.num_looks - before == 2

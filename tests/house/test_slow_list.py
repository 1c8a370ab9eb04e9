"""The list of slow tests names tests that there are, and leaves each file one."""

from __future__ import annotations

import re

from tests.slow import LIST, ROOT, choose


def test_each_listed_test_exists() -> None:
    """A test that was renamed or removed has to be listed anew, or nobody notices that the default runs it."""
    gone = []
    for name in LIST.read_text().splitlines():
        path, *_, function = name.split("::")
        definition = re.compile(rf"^\s*(?:async )?def {re.escape(function.partition('[')[0])}\(", re.MULTILINE)
        if not (ROOT / path).is_file() or not definition.search((ROOT / path).read_text()):
            gone.append(name)
    assert gone == []


def test_a_file_of_slow_tests_keeps_the_quickest() -> None:
    """The others of three seconds or more are left out, and quick ones never."""
    seconds = {"a.py::one": 9.0, "a.py::two": 4.0, "b.py::one": 3.0, "b.py::two": 2.9}
    assert choose(seconds) == ["a.py::one", "b.py::one"]

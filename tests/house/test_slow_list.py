"""The list of slow tests names existing tests only, and leaves out no file whole."""

from __future__ import annotations

import re

from tests.slow import LIST, ROOT, choose


def test_each_listed_test_exists() -> None:
    """Each listed test exists: after a rename the list must be written anew, or the default would run the test."""
    gone = []
    for name in LIST.read_text().splitlines():
        path, *_, function = name.split("::")
        definition = re.compile(rf"^\s*(?:async )?def {re.escape(function.partition('[')[0])}\(", re.MULTILINE)
        if not (ROOT / path).is_file() or not definition.search((ROOT / path).read_text()):
            gone.append(name)
    assert gone == []


def test_a_file_of_slow_tests_keeps_the_quickest() -> None:
    """Only tests of 1.5 seconds or more are left out, and each file keeps its quickest test."""
    seconds = {"a.py::one": 9.0, "a.py::two": 4.0, "b.py::one": 1.5, "b.py::two": 1.4, "c.py::one": 7.0}
    assert choose(seconds) == ["a.py::one", "b.py::one", "c.py::one"]

"""docs/architectures.md agrees with its data, and the data cover every module."""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.architectures.matrix import LOOPED, upstream_modules
from tests.architectures.standins import REASONS

GOOD = ("exact", "right", "refused")
ALWAYS = ("served", "alone", "parked", "replayed", "scored")
# Prompts shorter than its n-grams cannot be merged.
WRONG_WHEN_SHORT = {"longcat_flash_ngram"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/architectures.py as a module."""
    spec = importlib.util.spec_from_file_location("architectures", ROOT / "benchmarks" / "architectures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table(benchmark):
    return json.loads(benchmark.DATA.read_text())


def test_document_is_what_the_data_give(benchmark, table) -> None:
    """The document is what the benchmark writes from the data."""
    assert benchmark.DOCUMENT.read_text() == benchmark.render(table)


def test_every_module_is_in_the_table(table) -> None:
    """The table lists all modules of the mlx-lm it was recorded with, which is the installed one."""
    assert {facts["mlx_lm"] for facts in table.values()} == {version("mlx-lm")}
    assert sorted(table) == upstream_modules()


def test_only_looped_models_are_not_exact(table) -> None:
    """All modules but looped ones are proven and exact at every cut, and their caches work in a chain as in a model."""
    assert {module for module, facts in table.items() if facts["status"] != "exact"} == set(LOOPED)
    for module in set(table) - set(LOOPED):
        facts = table[module]
        assert len(facts["cuts"]) == facts["num_layers"], module  # every boundary, and one cut in three
        for ability in ("batch", "trim", "trim_rows", "snapshot"):
            assert facts[ability]["exact"] is not False, (module, ability)
    assert {module for module, facts in table.items() if facts["stand_in"]} == set(REASONS)


def test_what_is_exact_is_served_by_engines(table) -> None:
    """Every use of engines is exact, right side by side, or refused with a reason; steps of one session always run."""
    for module in set(table) - set(LOOPED):
        uses = table[module]["product"]
        assert {use: verdict for use, verdict in uses.items() if verdict["outcome"] not in GOOD} == {}, module
        assert all(uses[use]["outcome"] == "exact" for use in ALWAYS), module
        assert all(verdict["note"] for verdict in uses.values() if verdict["outcome"] == "refused"), module


def test_engines_batch_wherever_it_is_right(benchmark, table) -> None:
    """Engines batch wherever caches can be merged rightly, except for faults that two sequences do not show."""
    together = {
        module for module in table if table[module].get("product", {}).get("batched", {}).get("outcome") == "right"
    }
    may = {module for module in table if table[module].get("batch", {}).get("supported")}
    assert together <= may
    assert may - together == WRONG_WHEN_SHORT
    for module in set(table) - set(LOOPED):
        assert (benchmark._batch(table[module]) == "yes") == (module in together)


def test_headline_names_what_is_refused_and_why(benchmark, table) -> None:
    """The headline names the exceptions and their reasons first."""
    headline = benchmark.headline(table)
    assert headline.startswith(f"{len(table) - len(LOOPED)} of {len(table)} ")
    for module in LOOPED:
        assert f"{module} is refused (" in headline


def test_a_cut_that_is_not_exact_shows(benchmark, table) -> None:
    """A boundary that is not exact is counted, and named in the headline."""
    facts = json.loads(json.dumps(table["llama"]))
    facts["cuts"]["3"] = {"proven": True, "exact": False, "reason": "off by 0.5"}
    facts["status"] = "not exact"
    text = benchmark.render({**table, "llama": facts})
    assert "| llama | 6 of 7 |" in text
    assert "llama is not exact (3: off by 0.5)" in text


def test_readme_says_what_the_table_says(benchmark, table) -> None:
    """The numbers at the top of the README are those of the table."""
    text = " ".join((ROOT / "README.md").read_text().split())
    for claim in benchmark.headline(table).split("; ")[:2]:
        assert claim in text, claim

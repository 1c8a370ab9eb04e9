"""Fixtures shared by several packages' tests."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import signal
import sys
import tempfile
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

import shardhub
from shardhub.demo.smollm2 import fetch_and_convert
from tests import known, selection

# An example's time says how busy the machine is, nothing of the code.
settings.register_profile("shardhub", deadline=None)
settings.load_profile("shardhub")
# Nodes in processes of their own are held against MLX in this one, which keeps the reference BLAS.
os.environ["SHARDHUB_BLAS"] = "reference"
# Processes that tests start by the hundred would each compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# What a test keeps in the cache is neither another test's nor this user's.
_CACHES = tempfile.TemporaryDirectory(prefix="shardhub-caches-")
_cache_numbers = count()
os.environ["SHARDHUB_CACHE"] = f"{_CACHES.name}/shared"
# One folder for all processes of a run: pytest's workers have the variables of the process that starts them.
if known.FOLDER not in os.environ:
    _DISSECTIONS = tempfile.TemporaryDirectory(prefix="shardhub-dissections-")
    os.environ[known.FOLDER] = _DISSECTIONS.name
known.prepare()
# A shell has what it starts in the background ignore Ctrl-C, and so would every command the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_TESTS = Path(__file__).parent
# Packages whose tests dissect and prove each model.
_OF_THE_PROOF = ("architectures", "model", "selftest")
# Markers whose tests must run and not skip, separated by commas: where everything they need has been installed.
REQUIRED = {name for name in os.environ.get("SHARDHUB_REQUIRED_TESTS", "").split(",") if name}


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect tests without garbage collection, which would look through all of them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark tests before pytest chooses among them."""
    selection.mark(items)
    if config.pluginmanager.hasplugin("_cov"):
        # Many modules are imported on first use: were that in an unmeasured test, their definitions would not count.
        for module in pkgutil.walk_packages(shardhub.__path__, "shardhub."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Measure the coverage of the fast tests alone: the other ones would take half as long again."""
    plugin = item.config.pluginmanager.getplugin("_cov")
    if plugin is None or item.get_closest_marker("fast"):
        return (yield)
    plugin.cov_controller.pause()
    try:
        return (yield)
    finally:
        plugin.cov_controller.resume()


@pytest.fixture(scope="module", autouse=True)
def dissections(request):
    """Take dissections from those that this run has made, except in tests of the proof."""
    with known.remembering(request.path.relative_to(_TESTS).parts[0] not in _OF_THE_PROOF):
        yield


@pytest.fixture(scope="session", autouse=True)
def xet_cache(tmp_path_factory):
    """Have the Hub's client note elsewhere than in the user's own folder what it uploaded."""
    os.environ["HF_XET_CACHE"] = str(tmp_path_factory.mktemp("xet"))


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """Exempt objects older than a module's tests from garbage collection, of which an engine's start makes two."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own cache; fixtures of modules share one."""
    monkeypatch.setenv("SHARDHUB_CACHE", f"{_CACHES.name}/{next(_cache_numbers)}")


def pytest_deselected(items):
    """Count the tests that a run leaves out."""
    selection.note_left_out(items)


def pytest_sessionfinish(session):
    """Pass a worker's counts on to the process that prints."""
    selection.hand_on(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take the counts of a worker."""
    selection.take_over(node.config, getattr(node, "workeroutput", {}))


def pytest_terminal_summary(terminalreporter, config):
    """Print which tests were left out."""
    if (line := selection.summary(config)) is not None:
        terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Turn the skip of a mandatory test into a failure."""
    report = yield
    if report.skipped and any(item.get_closest_marker(name) for name in REQUIRED):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and had to run: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in float32 as an mlx-lm folder; fetched once and cached between runs."""
    return fetch_and_convert(dtype="float32")


@pytest.fixture(scope="session")
def smollm2_bfloat16() -> Path:
    """SmolLM2-135M-Instruct in bfloat16 as an mlx-lm folder."""
    return fetch_and_convert(dtype="bfloat16")


@pytest.fixture(scope="session")
def smollm2_4bit() -> Path:
    """SmolLM2-135M-Instruct in 4-bit, its embedding in 8-bit, as an mlx-lm folder."""
    return fetch_and_convert(dtype=None)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Writes a real byte-level tokenizer with a chat template, for the vocabulary of the tiny models."""
    from tests import tiny

    return tiny.save_tokenizer

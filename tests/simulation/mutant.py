"""A mutant: a known defect, inserted into a module of the product when the module is imported.

No file changes. A mutant lives in a process of its own, which has not imported the module yet. It is forked from a
server that has imported what the product needs, so that it starts sooner.
"""

from __future__ import annotations

import concurrent.futures
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parents[2]
# Imported once for all mutants: nothing of it imports a module that may be mutated.
_PRELOADED = (
    "grpc.aio",
    "numpy",
    "pydantic",
    "tests.simulation.mutant",
    "shardhub.manifest",
    "shardhub.parameters",
    "shardhub.protocol",
    "shardhub.tensors",
    "shardhub.security.trust",
    "shardhub.wire.shardhub_pb2_grpc",
)
# Real seconds of a seed after which it is taken to run for ever: most take a tenth of one.
_ENDLESS_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A defect.

    Attributes:
        name: A short name.
        what: What the product does wrong, in a sentence.
        path: The module's file, from the root of the project.
        old, new: Text that stands once in the file, and what is put in its place.
        seed: A seed that finds it.
    """

    name: str
    what: str
    path: str
    old: str
    new: str
    seed: int = 0

    @property
    def module(self) -> str:
        """The module's full name."""
        return self.path.removesuffix(".py").replace("/", ".")

    def apply(self, source: str) -> str:
        """The module's source with the defect.

        Raises:
            ValueError: The text to replace is not there once.
        """
        if (num := source.count(self.old)) != 1:
            raise ValueError(f"{self.name}: the text to replace stands {num} times in {self.path}.")
        return source.replace(self.old, self.new)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with a defect; no bytecode is read or written."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(mutant.module, str(ROOT / mutant.path))
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        source = self._mutant.apply(Path(self.path).read_text())
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        loader = _Loader(self._mutant)
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)


def put_back(mutant: Mutant) -> None:
    """Insert a defect into its module, which must not be imported yet."""
    if mutant.module in sys.modules:
        raise RuntimeError(f"{mutant.module} is imported already.")
    sys.meta_path.insert(0, _Finder(mutant))


def failures_of(mutant: Mutant | None, seeds: Sequence[int]) -> tuple[int | None, list[str]]:
    """Run seeds with a defect until one fails.

    Returns:
        The seed that failed, if any, and its failures.
    """
    if mutant is not None:
        put_back(mutant)
    from tests.simulation.scenario import draw
    from tests.simulation.world import run

    for seed in seeds:
        try:
            with _no_longer_than(_ENDLESS_S):
                failures = run(draw(seed)).failures
        except Exception as error:  # noqa: BLE001 - whatever a defect does to the simulator, it shows
            failures = [f"{type(error).__name__}: {error}"]
        if failures:
            return seed, failures
    return None, []


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """Stop this thread's computation after a time."""

    def end(*_: object) -> None:
        raise TimeoutError(f"It computes for more than {seconds:.0f} s.")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fresh_processes(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    """A pool of processes that run one function each, and have imported no module that has mutants."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1)


def hunt(
    mutants: Sequence[Mutant], seeds: Callable[[Mutant], Sequence[int]], jobs: int
) -> Iterator[tuple[Mutant, int | None, list[str]]]:
    """Run each mutant over seeds until one fails; yields the mutants in order, with that seed and its failures."""
    with fresh_processes(jobs) as processes:
        running = [processes.submit(failures_of, mutant, seeds(mutant)) for mutant in mutants]
        for mutant, future in zip(mutants, running, strict=True):
            yield mutant, *future.result()

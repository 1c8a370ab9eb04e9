"""What `import shardhub` provides: its names, how quickly, and its types."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import shardhub
from shardhub import errors

EXAMPLE = Path(__file__).parent / "typed_example.py"
# CPU time of the fastest of several imports; the interpreter's start is not counted.
IMPORT_S = 0.030
NUM_TRIES = 5

NAMES = {
    "functions": {
        "bench",
        "live_status",
        "open_gateway",
        "open_head",
        "plan",
        "publish",
        "pull",
        "push",
        "read_keys",
        "search",
        "serve",
        "split",
        "verify",
        "verify_reference",
        "verify_run",
        "verify_source",
    },
    "settings": {
        "BenchSettings",
        "Cut",
        "GatewaySettings",
        "HeadSettings",
        "ParitySettings",
        "PlanSettings",
        "PublishSettings",
        "PullSettings",
        "PushSettings",
        "Quantisation",
        "Recovery",
        "ReferenceSettings",
        "Sampling",
        "SearchSettings",
        "ServeSettings",
        "SourceSettings",
        "SplitSettings",
        "StatusSettings",
        "VerifySettings",
    },
    "values": {
        "Answer",
        "AnswerStream",
        "AsyncAnswerStream",
        "AsyncHead",
        "BenchLevel",
        "BenchReport",
        "ChainStatus",
        "Check",
        "GatewayFacts",
        "Head",
        "HeadStatus",
        "Keys",
        "LiveStatus",
        "ModelPlan",
        "Node",
        "NodeFacts",
        "NodeStatus",
        "Piece",
        "Progress",
        "Publication",
        "PublishedPipeline",
        "Pulled",
        "ReferenceRecord",
        "RunVerification",
        "RunningGateway",
        "ScoredToken",
        "SourceVerification",
        "Split",
        "StagesAt",
        "Usage",
        "Verdict",
        "Verification",
        "Watcher",
    },
}


def error_names() -> set[str]:
    return {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.ShardhubError)
    }


def test_all_names_are_the_promised_ones() -> None:
    """`__all__` holds the functions, their settings and values, and every error; each of them exists."""
    assert set(shardhub.__all__) == {"__version__", *error_names(), *set().union(*NAMES.values())}
    assert len(set(shardhub.__all__)) == len(shardhub.__all__)
    for name in shardhub.__all__:
        assert getattr(shardhub, name) is not None
    assert set(shardhub.__all__) <= set(dir(shardhub))


def test_other_names_are_refused() -> None:
    """A name outside `__all__` raises AttributeError, even if one of our modules defines it."""
    assert not hasattr(shardhub, "preview")
    assert not hasattr(shardhub, "verify_files")


def test_import_is_quick_and_brings_nothing() -> None:
    """`import shardhub` takes less than 30 ms and loads no other module of ours, no MLX and no pydantic."""
    program = (
        "import sys, time; start = time.process_time(); import shardhub; took = time.process_time() - start; "
        "ours = [name for name in sys.modules if name.startswith('shardhub.')]; "
        "heavy = {'mlx', 'grpc', 'pydantic', 'numpy', 'transformers'} & set(sys.modules); print(took, ours, heavy)"
    )
    times = []
    for _ in range(NUM_TRIES):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        took, rest = done.stdout.strip().split(" ", 1)
        assert rest == "[] set()"
        times.append(float(took))
    assert min(times) < IMPORT_S


def test_everything_is_typed() -> None:
    """mypy --strict accepts a program that uses the whole library."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=EXAMPLE.parents[2])
    assert done.returncode == 0, done.stdout


def test_the_typed_example_uses_every_name() -> None:
    """The example names each function, setting and value."""
    text = EXAMPLE.read_text(encoding="utf-8")
    assert not {name for names in NAMES.values() for name in names if f"shardhub.{name}" not in text}

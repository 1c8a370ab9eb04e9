"""Running a command: an error becomes one screen of text and an exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from shardhub.cli.setting_names import with_flags
from shardhub.cli.streams import OutputFailed, drop_output, finish_output, output_error
from shardhub.errors import ShardhubError, outcome
from shardhub.shortage import shortage
from shardhub.toolchain import mlx_missing

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


def run(command: Callable[[], int | None], *, debug: bool = False, as_json: bool = False) -> None:
    """Run a command and exit with its code.

    Args:
        command: Returns an exit code, or None for 0.
        debug: Show tracebacks and logs.
        as_json: Also report errors as JSON on stdout, for programs.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s" if debug else "%(levelname)s: %(message)s",
    )
    for noisy in ("asyncio", "grpc._cython.cygrpc", "urllib3", "filelock", "httpx2", "httpcore2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # gRPC's core logs each peer that calls without TLS or goes away, in lines that help only its own developers.
    if not debug:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        with _sigterm_exits():
            code = command() or 0
    except ShardhubError as error:
        if debug:
            logging.getLogger(__name__).exception("command failed")
        code = _tell(error, as_json=as_json)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; keep the interpreter from reporting that at exit.
        drop_output()
        code = 1
    except OutputFailed as error:
        drop_output()
        code = _tell(output_error(error), as_json=False)
    except Exception as error:
        lacking = shortage(error) or mlx_missing(error)
        if debug:
            if lacking is None:
                raise
            logging.getLogger(__name__).exception("command failed")
        code = _tell(lacking or _fault(error), as_json=as_json)
    if (failed := finish_output()) is not None and not code:
        code = _tell(failed, as_json=False) if failed.what else 1
    sys.exit(code)


def _tell(error: ShardhubError, *, as_json: bool) -> int:
    """Print an error and return its exit code."""
    if as_json:
        with contextlib.suppress(OSError):  # the exit code still reports the failure
            print(json.dumps(error_record(error)), flush=True)
    print_error(error)
    return outcome(error).exit


def _fault(error: Exception) -> ShardhubError:
    hint = "This is a bug in shardhub: please report it with the output of the same command and --debug."
    return ShardhubError("An unexpected error occurred.", why=f"{type(error).__name__}: {error}", hint=hint)


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Let SIGTERM end a command like an exit, so that its child processes and temporary folders are removed.

    A command that drains handles the signal itself.
    """

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_error(error: ShardhubError) -> None:
    """Print to stderr what happened, why, and what to do."""
    lines = [f"Error: {error.what}"]
    if error.why:
        lines.append(f"Why: {error.why}")
    if error.hint:
        lines.append(f"Try: {error.hint}")
    print(with_flags("\n".join(lines)), file=sys.stderr)


def error_record(error: ShardhubError) -> dict[str, object]:
    """Convert an error to JSON-able data."""
    return {
        "error": type(error).__name__,
        "what": with_flags(error.what),
        "why": with_flags(error.why),
        "hint": with_flags(error.hint),
        "exit_code": outcome(error).exit,
    }

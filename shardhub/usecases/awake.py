"""Keep a Mac awake while it serves: only on mains power, and only as long as this process lives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shardhub.usecases.watcher import SILENT, Watcher

# `-s` applies on mains power only; `-w` ends it with this process, however that ends.
_CAFFEINATE = ("caffeinate", "-s", "-w")


@contextmanager
def awake(*, allow_sleep: bool, platform: str = sys.platform, watcher: Watcher = SILENT) -> Iterator[None]:
    """Prevent sleep on macOS; on other systems their own settings apply.

    Args:
        allow_sleep: Do nothing.
        platform: Platform as in `sys.platform`.
        watcher: Notified if sleep cannot be prevented.
    """
    program = shutil.which(_CAFFEINATE[0]) if platform == "darwin" and not allow_sleep else None
    if program is None:
        if platform == "darwin" and not allow_sleep:
            watcher.note("warning: `caffeinate` was not found: this machine may sleep while it serves")
        yield
        return
    holding = subprocess.Popen([program, *_CAFFEINATE[1:], str(os.getpid())], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        holding.terminate()
        holding.wait()

"""Says in a sentence, before anything is fetched, that MLX cannot be installed here: pip would only find no wheel."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# For whoever builds here what is to run elsewhere.
_OVERRIDE = "SHARDHUB_BUILD_ANYWHERE"


class MachineCheck(MetadataHookInterface):
    """Ends the build on a machine that cannot run the result; adds nothing to the metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Hold this machine against what MLX asks for."""
        spec = importlib.util.spec_from_file_location(
            "requirements", Path(__file__).resolve().parent / "shardhub" / "requirements.py"
        )
        assert spec is not None
        assert spec.loader is not None
        requirements = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(requirements)
        reason = requirements.unfitness(requirements.this_machine())
        if reason and not os.environ.get(_OVERRIDE):
            raise SystemExit(
                f"\nshardhub cannot run on this machine. {reason}\n({_OVERRIDE}=1 builds it all the same.)\n"
            )

"""Options that name a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardhub.cli.flags import flags
from shardhub.errors import UsageError


@flags("Pipeline")
class PipelineFlags:
    """The pipeline, given as an argument or with --manifest."""

    pipeline: Annotated[
        str | None, typer.Argument(metavar="PIPELINE", help="Pipeline: a Hub id ORG/NAME[@REVISION], or a folder.")
    ] = None
    manifest: Annotated[str | None, typer.Option("--manifest", help="The same, as an option.")] = None

    def named(self, command: str) -> str:
        """The pipeline's folder or Hub id.

        Args:
            command: Name of the command, for messages.

        Raises:
            UsageError: No pipeline is given, or two different ones.
        """
        given = {text for text in (self.pipeline, self.manifest) if text is not None}
        if len(given) != 1:
            raise UsageError(
                "No pipeline was given." if not given else "Two pipelines were given.",
                hint=f"Give one folder or repo, such as: shardhub {command} ORG/MODEL-pipeline",
            )
        return given.pop()


@flags("Pipeline")
class ServedPipelineFlags(PipelineFlags):
    """The pipeline, given as others are, or one that is up in this machine's cluster."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Or a pipeline that is up in the cluster, by its name in `ps`; by default the only one."
        ),
    ] = None

    def named_or_up(self, command: str, tls: Path | None) -> str:
        """The pipeline's folder or Hub id; if none is given, that of a pipeline that is up in this machine's cluster.

        Args:
            command: Name of the command, for messages.
            tls: Folder of this machine's certificates.

        Raises:
            UsageError: No pipeline is given, and none or several are up; or two different ones are given.
        """
        if self.pipeline is not None or self.manifest is not None:
            if self.model is not None:
                raise UsageError("Two pipelines were given.", hint="Leave out --model, or the other one.")
            return self.named(command)
        from shardhub.usecases.cluster_place import ClusterPlace
        from shardhub.usecases.served import choose_served

        example = f"shardhub {command} ORG/MODEL-pipeline"
        return choose_served(self.model, ClusterPlace(tls=tls), example=example).pipeline

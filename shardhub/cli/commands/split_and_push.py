"""`shardhub split-and-push`."""

from __future__ import annotations

import sys

from shardhub.cli.flags import Output
from shardhub.cli.options import CheckFlags, CutFlags, Model, ModelFlags, QuantiseFlags
from shardhub.cli.pushing import PushFlags, run_push
from shardhub.cli.source_flags import SourceHubFlags
from shardhub.cli.terminal import Terminal


def split_and_push(
    model: Model,
    cut: CutFlags,
    quantising: QuantiseFlags,
    publishing: PushFlags,
    checks: CheckFlags,
    reading: SourceHubFlags,
    leaving: ModelFlags,
    output: Output,
) -> int:
    """Cut a model and publish its stages on the Hub, each in a repo of its own; needs disk space for one weight file.

    To finish an interrupted run, run the same command again; nothing is uploaded twice.
    """
    from shardhub.usecases.publish import ModelPush, PublishSettings

    settings = PublishSettings(
        namespace=publishing.namespace,
        name=publishing.name,
        private=publishing.private,
        replace=publishing.replace,
        by_reference=publishing.by_reference,
        assume_yes=publishing.yes,
        check_weights=checks.check_weights,
        cache_dir=publishing.cache_dir,
        parity=checks.parity(),
        sign_key=checks.sign_key,
        source_endpoint=reading.source_endpoint,
        ignore_code=leaving.ignore_code,
        ignore_fields=leaving.ignore_fields,
        quantisation=quantising.quantisation(),
        client_bars=sys.stderr.isatty(),
    )
    push = ModelPush(model, cut.cut(), settings, Terminal())
    return run_push(push, dry_run=publishing.dry_run, as_json=output.as_json)

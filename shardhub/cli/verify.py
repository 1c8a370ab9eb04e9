"""`shardhub verify`: a pipeline's bytes, its proof, its numbers, held against what was published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardhub.errors import UsageError
from shardhub.usecases.start_head import HeadOptions, pipeline_named


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What is to be verified, and against what; see the command's help."""

    pipeline: str | None
    manifest: str | None
    fetch: bool
    run: bool
    nodes: list[str] | None
    no_local: bool
    reference: bool
    push: bool
    num_tokens: int
    source: bool
    num_tensors: int | None
    seed: int | None
    source_folder: Path | None
    memory: str | None
    cache_dir: Path | None
    as_json: bool
    tls: Path | None = None
    insecure_lan: bool = False
    key: str | None = None


def verify(options: VerifyOptions) -> int:
    """Verify a pipeline in the one way the options ask for.

    Raises:
        UsageError: They ask for several, or give something that does not go with the one.
    """
    head = HeadOptions(
        command="verify",
        pipeline=options.pipeline,
        manifest=options.manifest,
        nodes=options.nodes,
        no_local=options.no_local,
        context=None,
        memory=options.memory,
        cache_dir=options.cache_dir,
        tls=options.tls,
        insecure_lan=options.insecure_lan,
    )
    pipeline = pipeline_named(head)
    modes = {"--run": options.run, "--reference": options.reference, "--source": options.source}
    given = [name for name, is_given in modes.items() if is_given]
    if options.key is not None and given:
        raise UsageError(f"--key and {given[0]} cannot go together.", hint="Run them one after the other.")
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} cannot go together.", hint="Run them one after the other.")
    mode = given[0] if given else ""
    needed = {
        "--node": (bool(options.nodes), "--run"),
        "--push": (options.push, "--reference"),
        "--tensors": (options.num_tensors is not None, "--source"),
    }
    for name, (is_given, wanted) in needed.items():
        if is_given and mode != wanted:
            raise UsageError(f"{name} goes with {wanted}.", hint=f"Add {wanted}, or leave out {name}.")
    if mode == "--run":
        from shardhub.usecases.verify_run import verify_run

        return verify_run(head, pipeline, as_json=options.as_json)
    if mode == "--reference":
        from shardhub.usecases.verify_reference import ReferenceOptions, verify_reference

        reference = ReferenceOptions(
            source_folder=options.source_folder,
            push=options.push,
            fetch=options.fetch,
            num_tokens=options.num_tokens,
            memory=options.memory,
            cache_dir=options.cache_dir,
        )
        return verify_reference(pipeline, reference, as_json=options.as_json)
    if mode == "--source":
        from shardhub.usecases.verify_source import SourceOptions, verify_source

        source = SourceOptions(
            source_folder=options.source_folder,
            num_tensors=options.num_tensors,
            seed=options.seed,
            fetch=options.fetch,
            cache_dir=options.cache_dir,
        )
        return verify_source(pipeline, source, as_json=options.as_json)
    from shardhub.usecases.verify_files import verify_files

    return verify_files(
        pipeline, fetch=options.fetch, cache_dir=options.cache_dir, as_json=options.as_json, key=options.key
    )

"""A check of a model's tokenizer, made before the model is planned or split."""

from __future__ import annotations

from dataclasses import replace

from shardhub.checkpoint.checkpoint import Checkpoint
from shardhub.checkpoint.config import text_config
from shardhub.splitting.shard_folder import pipeline_file_names, template_file_names
from shardhub.text.rehearsal import rehearse
from shardhub.usecases.places import Model
from shardhub.usecases.watcher import SILENT, Watcher


def with_tokenizer(
    model: Model, *, ignore_code: bool = False, is_needed: bool = True, watcher: Watcher = SILENT
) -> Model:
    """Return the model with the tokenizer files for its pipeline, after checking that they work.

    Args:
        model: The model.
        ignore_code: Accept a tokenizer with code of its own, without that code.
        is_needed: Whether a model without a tokenizer is refused.

    Raises:
        UnsupportedModel: A head cannot use its tokenizer or its chat template.
        FormatError: A file of the tokenizer is malformed.
    """
    checkpoint = model.checkpoint
    names = [*pipeline_file_names(checkpoint), *template_file_names(checkpoint)]
    rehearsal = rehearse(
        {name: checkpoint.small_file(name) for name in names},
        where=checkpoint.where,
        ignore_code=ignore_code,
        num_rows=_num_rows(checkpoint),
        is_needed=is_needed,
    )
    for text in rehearsal.notes:
        watcher.note(f"note: {text}")
    checkpoint = checkpoint.with_files(rehearsal.files, without=rehearsal.left_out)
    return replace(model, checkpoint=checkpoint, notes=(*model.notes, *rehearsal.notes))


def _num_rows(checkpoint: Checkpoint) -> int | None:
    """Number of token ids the model has rows for, from its configuration."""
    rows = text_config(checkpoint.config).get("vocab_size")
    return rows if isinstance(rows, int) else None

"""Names of settings in messages, converted to options of the command line.

Code below the command line names a setting as in Python, in backticks: `kv_bits`. Here it becomes `--kv-bits`.
A complete command (`shardhub serve --port 0`) is the same for everyone, and is not changed.
"""

from __future__ import annotations

import re

# Every setting that a message below the command line may name, and the option that sets it.
FLAGS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        *("allow_inexact", "blas", "by_reference", "cache_dir", "context", "cuts", "dir", "end_cluster", "fetch"),
        *("host", "life", "max_sessions", "on", "serve_only", "sessions"),
        *("ignore_code", "insecure_lan", "insecure_metrics", "insecure_nodes", "key", "kv_bits", "kv_group_size"),
        *("max_tokens", "memory", "metrics", "name", "namespace", "only", "peers", "plan", "port", "private"),
        *("public_url", "push", "raw", "reference", "replace", "require_signature", "role", "run", "seed", "sign_key"),
        *("source_endpoint", "source_folder", "stages", "tls"),
    )
} | {
    "assume_yes": "--yes",
    "bits": "--q-bits",
    "group_size": "--q-group-size",
    "ignore_fields": "--ignore-field",
    "keys": "--api-key-file",
    "machines": "--machine",
    "neighbours": "--neighbour",
    "mode": "--q-mode",
    "model_names": "--model-name",
    "nodes": "--node",
    "num_prompt": "--prompt-tokens",
    "num_tokens": "--tokens",
    "recipe": "--q-recipe",
}
_SETTING = re.compile(r"`([a-z_]+)`")


def with_flags(text: str) -> str:
    """Replace the settings in a message by the options of the command line."""
    return _SETTING.sub(lambda match: FLAGS.get(match[1], match[0]), text)

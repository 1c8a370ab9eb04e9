"""Write the schemas of Kubernetes that the manifests need, from those that kubernetes-validate carries.

pip download --no-deps kubernetes-validate==1.37.0 && unzip kubernetes_validate-*.whl
python tests/deploy/vendor_schemas.py kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KUBERNETES = Path(__file__).parent / "schemas" / "kubernetes.json"
KINDS = ("api.apps.v1.Deployment", "api.core.v1.Service", "api.core.v1.ConfigMap")
PARTS = (
    "api.core.v1.PodTemplateSpec",
    "api.core.v1.PersistentVolumeClaim",
    "apimachinery.pkg.apis.meta.v1.ObjectMeta",
)


def references(schema: Any) -> Iterator[str]:
    """The names of the definitions that a schema refers to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        yield from (name for value in schema.values() for name in references(value))
    elif isinstance(schema, list):
        yield from (name for value in schema for name in references(value))


def without_words(schema: Any) -> Any:
    """A schema without descriptions and notes for Kubernetes itself; it refers to definitions in its own file."""
    if isinstance(schema, dict):
        is_word = {key for key, value in schema.items() if key == "description" and isinstance(value, str)}
        kept = {key: value for key, value in schema.items() if key not in is_word and not key.startswith("x-")}
        inside = {"$ref": f"#/$defs/{next(references(kept))}"} if "$ref" in kept else {}
        return {key: without_words(value) for key, value in kept.items()} | inside
    return [without_words(value) for value in schema] if isinstance(schema, list) else schema


def reachable(definitions: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """These definitions and all that they refer to."""
    kept: dict[str, Any] = {}
    while names:
        if (name := names.pop()) not in kept:
            kept[name] = without_words(definitions[name])
            names += references(kept[name])
    return kept


def main(folder: Path) -> None:
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]
    names = [f"io.k8s.{name}" for name in (*KINDS, *PARTS)]
    schema = {
        "$comment": f"Kubernetes' own schemas ({folder.name}), as kubernetes-validate 1.37.0 carries them on PyPI, by "
        "vendor_schemas.py. Copyright The Kubernetes Authors, Apache License 2.0.",
        "$defs": dict(sorted(reachable(definitions, names).items())),
    }
    KUBERNETES.write_text(json.dumps(schema, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

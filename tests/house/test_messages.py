"""Every string with a field in braces is an f-string or a known template."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import shardhub

PACKAGE = Path(shardhub.__file__).parent
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if not path.stem.endswith(("_pb2", "_pb2_grpc")))
# A field of an f-string: `{name}`, `{name.part}`, `{name[0]}`, `{name(...)}`, `{name!r}`, `{name:.2f}`.
FIELD = re.compile(r"\{[A-Za-z_]\w*(?:[.\[(][^{}]*)?(?:![rsa])?(?::[^{}]*)?\}")
# The paths of an HTTP route have their own fields.
ROUTE = re.compile(r"(?:/[^\s/]+)+")
# Templates that are filled in elsewhere, by file and by how they begin.
TEMPLATES = {
    ("gateway/embeddings.py", "This gateway serves a model that generates text."),
    ("text/tool_prompt.py", "# Tools\n\nYou may call one or more functions"),
}


def suspects(source: str) -> Iterator[ast.Constant]:
    """Literals with a field but without `f`, except docstrings and the paths of routes."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
            and FIELD.search(node.value)
            and not ROUTE.fullmatch(node.value)
        ):
            yield node


def test_every_text_with_a_field_is_an_f_string() -> None:
    """A field in a literal without `f` would be printed as it is; the list of known templates is up to date."""
    listed: set[tuple[str, str]] = set()
    for path in SOURCES:
        name = path.relative_to(PACKAGE).as_posix()
        for node in suspects(path.read_text(encoding="utf-8")):
            entry = next(
                ((file, text) for file, text in TEMPLATES if file == name and node.value.startswith(text)), None
            )
            assert entry is not None, f"{name}:{node.lineno}: {node.value!r}"
            listed.add(entry)
    assert listed == TEMPLATES


def test_a_missing_f_is_seen_beside_an_f_string() -> None:
    """A missing `f` is seen in the second of two joined literals, too; a correct message and a route pass."""
    source = textwrap.dedent(
        '''
        """A docstring may say {name}."""
        raise ShardhubError("It is in {folder.name}.", why=f"{size}", hint=f"{where} is full: " "free {size:.1f}.")
        raise ShardhubError(f"It is in {folder.name}.", hint="Write: {}")
        app.get("/models/{name:path}")
        '''
    )
    assert [node.lineno for node in suspects(source)] == [3, 3]

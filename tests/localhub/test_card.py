"""Cards with arbitrary content: each is shown as far as JSON can represent it, and breaks no listing."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi

from shardhub.localhub.card import MAX_FRONT_MATTER_CHARS, CardError, front_matter, tags
from shardhub.localhub.server import RunningHub

# YAML that is read, and what comes of it.
ODD: list[tuple[str, dict[str, Any]]] = [
    (r'tags: ["\ud800"]', {"tags": ["\ufffd"]}),
    (r'"\udfff": "\ud83d\ude00"', {"\ufffd": "\U0001f600"}),
    ("a: 2024-01-01", {"a": "2024-01-01"}),
    ("a: 2001-99-99", {"a": "2001-99-99"}),
    ("a: 2001-12-14 21:59:43 +99:99", {"a": "2001-12-14 21:59:43 +99:99"}),
    ("a: [.nan, -.inf, 1e999]", {"a": [".nan", "-.inf", "1e999"]}),
    ("a: 9223372036854775808", {"a": "9223372036854775808"}),
    (f"a: {'9' * 5000}", {"a": "9" * 5000}),
    (f"a: {':'.join(['59'] * 300)}.5", {"a": f"{':'.join(['59'] * 300)}.5"}),
    ("a: !!bool maybe\nb: !!int ''\nc: !!timestamp x\nd: !!float y", {"a": "maybe", "b": "", "c": "x", "d": "y"}),
    ("a: !!binary '%'\nb: !!set {x}\nc: !own y", {"a": "%", "b": {"x": None}, "c": "y"}),
    ("1: a\nnull: b\n2024-01-01: c\n? [x]\n: d", {"1": "a", "null": "b", "2024-01-01": "c"}),
    ("a: &x [1, 1_000, 1.5, yes, ~]", {"a": [1, 1000, 1.5, True, None]}),
]
REFUSED = [
    "a: &x [1]\nb: *x",
    f"a: {'[' * 1000}",
    f"a: [{'1,' * 20_000}]",
    f"a: {'x' * MAX_FRONT_MATTER_CHARS}",
    "- a",
    "a: [",
    "a: \x01",
    "a: 1\n---x\nb: 2",
]


def card(block: str) -> str:
    return f"---\n{block}\n---\n# Title\n"


@pytest.mark.parametrize(("block", "expected"), ODD)
def test_what_json_cannot_carry_stays_text(block: str, expected: dict[str, Any]) -> None:
    """Every value becomes JSON in valid UTF-8, and no value affects another one."""
    metadata = front_matter(card(block))
    assert metadata == expected
    json.dumps([metadata, tags(metadata)], ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("block", REFUSED, ids=lambda block: block[:12])
def test_invalid_or_growing_metadata_is_refused(block: str) -> None:
    """Aliases, deep nesting, excessive length and invalid YAML are refused, in a message that JSON can represent."""
    with pytest.raises(CardError) as refused:
        front_matter(card(block))
    str(refused.value).encode()


def test_no_card_ends_a_listing(hub: RunningHub, api: HfApi) -> None:
    """The real client lists and describes all repos, whatever an unchecked push put into their cards."""
    blocks = [*(block for block, _ in ODD), *REFUSED, "self: 1\nignore_metadata_errors: no\nlicense: mit", "tags: 1"]
    ids = [api.create_repo(f"ann/m{number}").repo_id for number in range(len(blocks))]
    for repo_id, block in zip(ids, blocks, strict=True):
        content = base64.b64encode(card(block).encode("utf-8")).decode()
        lines = [{"key": "header", "value": {"summary": "raw"}}]
        lines += [{"key": "file", "value": {"path": "README.md", "content": content}}]
        url = f"{hub.endpoint}/api/models/{repo_id}/commit/main"
        done = httpx2.post(
            url, content="\n".join(map(json.dumps, lines)), headers={"Authorization": f"Bearer {api.token}"}, timeout=60
        )
        assert done.status_code == 200
    assert {info.id for info in api.list_models()} == set(ids)
    assert {api.model_info(repo_id).id for repo_id in ids} == set(ids)

"""Names of shards and pipelines: derived, accepted or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from shardhub.errors import UsageError
from shardhub.manifest import MAX_STAGES
from shardhub.naming import (
    check_file_name,
    check_is_text,
    check_model_name,
    check_namespace,
    model_name,
    pipeline_name,
    shard_name,
)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("org/Model-7B", "Model-7B"),
        ("/models/llama-3--merged/", "llama-3-merged"),
        ("model..v2", "model.v2"),
        ("my model (final) \u2014 v2", "my-model-final-v2"),
        ("\u00dcn\u00ef-7B", "Uni-7B"),
        ("-.model.-", "model"),
        ("CON", "model-CON"),
        ("con.v2", "model-con.v2"),
        ("/cache/models--org--Toy-Model/snapshots/" + "0" * 40, "Toy-Model"),
        ("/cache/models--org--Toy", "Toy"),
        ("x" * 300, "x" * 80),
    ],
)
def test_name_is_made_of_a_models_own(source: str, name: str) -> None:
    """A folder's or repo's name becomes the nearest valid repo name."""
    assert model_name(source) == name


@given(st.text(max_size=120))
def test_every_name_that_is_made_is_taken_by_a_hub(text: str) -> None:
    """A derived name is always valid on a Hub; where none can be derived, the user must give one."""
    try:
        name = model_name(text)
    except UsageError:
        return
    assert check_model_name(name) == name
    for repo in (shard_name(name, 0), shard_name(name, MAX_STAGES - 1), pipeline_name(name)):
        validate_repo_id(f"org/{repo}")
        check_file_name(repo, where="name")


@pytest.mark.parametrize("name", ["a--b", "a..b", "-a", "a.", "me/x", "a b", "x" * 81, "\u6a21\u578b", "", "nul"])
def test_name_that_is_given_is_taken_or_refused(name: str) -> None:
    """A name that a Hub would refuse is refused before the work, with a valid suggestion."""
    with pytest.raises(UsageError, match="cannot be the name of a repo") as caught:
        check_model_name(name)
    proposed = caught.value.hint.rsplit(" ", 1)[-1]
    assert check_model_name(proposed) == proposed


def test_namespaces_are_checked() -> None:
    """A namespace must be a valid user name."""
    assert check_namespace("some-org_1") == "some-org_1"
    for name in ("a b", "a/b", "-a", "a--b", "", "a."):
        with pytest.raises(UsageError, match="user or an organisation"):
            check_namespace(name)


def test_path_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """A folder whose name is not UTF-8 is refused, with what to do."""
    check_is_text(tmp_path / "ünï 模型")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        check_is_text(Path(os.fsdecode(bytes(tmp_path) + b"/\xff")))

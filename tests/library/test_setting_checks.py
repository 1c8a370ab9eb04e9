"""A value of a wrong type or range is refused at once, with the setting's name; folders may be strings or `Path`s."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardhub
from shardhub.usecases.addresses import node_addresses
from tests import cut

SETTINGS = [
    getattr(shardhub, name) for name in shardhub.__all__ if name.endswith("Settings") or name in ("Cut", "Sampling")
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.__name__)
def test_every_setting_of_a_wrong_type_is_refused_by_name(settings: Any) -> None:
    """Every field of every settings class refuses an object of a foreign type."""
    needed = {"pipeline": "a"} if "pipeline" in {field.name for field in dataclasses.fields(settings)} else {}
    settings(**needed)
    for field in dataclasses.fields(settings):
        with pytest.raises(shardhub.UsageError, match=f"`{field.name}` is .*, of type complex") as caught:
            settings(**{**needed, field.name: 1j})
        assert caught.value.why.startswith("It must be ")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shardhub.Sampling(max_tokens=0), "`max_tokens` is 0. It must be 1 or more."),
        (lambda: shardhub.Sampling(draft=33), "`draft` is 33. It must be from 0 to 32."),
        (lambda: shardhub.ServeSettings(port=70_000), "`port` is 70000. It must be from 0 to 65535."),
        (
            lambda: shardhub.GatewaySettings(port="80"),  # type: ignore[arg-type]
            "`port` is '80', of type str. It must be a whole number.",
        ),
        (
            lambda: shardhub.Sampling(max_tokens=True),
            "`max_tokens` is True, of type bool. It must be a whole number.",
        ),
        (
            lambda: shardhub.Sampling(stop="end"),  # type: ignore[arg-type]
            "`stop` is 'end', of type str. It must be a tuple, each of its values a text.",
        ),
        (
            lambda: shardhub.Sampling(temperature=101.0),
            "temperature is 101.0. It must be from 0.0 to 100.0. Give another value, or leave it out.",
        ),
        (lambda: shardhub.Sampling(top_p=0.0), "top_p is 0.0. It must be above 0.0, and at most 1.0."),
        (lambda: shardhub.BenchSettings(levels=(1, 0)), "`levels` is 0. It must be 1 or more."),
        (lambda: shardhub.StatusSettings(pipeline="a", interval_s=float("nan")), "`interval_s` is nan. It must be"),
    ],
)
def test_message_names_the_setting_and_what_it_may_be(make: Callable[[], Any], message: str) -> None:
    """The message names the setting, its value, and the types or numbers that are possible."""
    with pytest.raises(shardhub.UsageError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_arguments_of_a_wrong_type_are_refused_by_name() -> None:
    """A function checks its other arguments before it reads anything."""
    for call, name in (
        (lambda: shardhub.split("model", "out", 2), "cut"),  # type: ignore[arg-type]
        (lambda: shardhub.plan("model", 2), "cut"),  # type: ignore[arg-type]
        (lambda: shardhub.plan(2), "name"),  # type: ignore[arg-type]
        (lambda: shardhub.open_head(None), "pipeline"),  # type: ignore[arg-type]
    ):
        with pytest.raises(shardhub.UsageError, match=f"`{name}` is "):
            call()


def test_one_address_is_a_text() -> None:
    """A string for `nodes` is one address, not one for each of its letters."""
    settings = shardhub.HeadSettings(pipeline="a", nodes="127.0.0.1:50051")
    assert node_addresses(settings.nodes, None) == ["127.0.0.1:50051"]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [str, Path])
def test_folders_are_texts_or_paths(kind: type, tmp_path: Path, tiny_tokenizer: Callable[[Path], Any]) -> None:
    """Folders may be strings or paths everywhere, and prompts that cannot be run give a readable error."""
    model = cut.tiny_model(tmp_path / "model")
    tiny_tokenizer(model)
    skipped = shardhub.SplitSettings(parity=shardhub.ParitySettings(skip=True))
    made = shardhub.split(kind(model), kind(tmp_path / "out"), shardhub.Cut(stages=1), skipped)
    assert made.pipeline is not None
    assert shardhub.verify(kind(made.pipeline), shardhub.VerifySettings(cache_dir=kind(tmp_path / "cache"))).ok
    with (
        pytest.raises(shardhub.UsageError, match="made by `shardhub split MODEL DIR`, or a Hub id such as ORG/NAME"),
        shardhub.serve(kind(tmp_path)),
    ):
        pass
    with shardhub.serve(kind(made.shards[0].folder)) as node:
        taken = shardhub.ServeSettings(port=int(node.address.rpartition(":")[2]))
        with (
            pytest.raises(shardhub.AddressError, match="this process is using it"),
            shardhub.serve(kind(made.shards[0].folder), taken),
        ):
            pass
        settings = shardhub.HeadSettings(pipeline=kind(made.pipeline), nodes=node.address, allow_local=False)
        with shardhub.open_head(settings) as head:
            assert len(head.answer([5, 6], shardhub.Sampling(max_tokens=1)).tokens) <= 1
            for prompt in (None, b"ab", [True], [], [{"role": "user"}], [{"content": "a"}], 5):
                with pytest.raises(shardhub.PromptError, match=r"^The prompt cannot be read\. (It is|Message 0 has)"):
                    head.answer(prompt)  # type: ignore[arg-type]
            with pytest.raises(shardhub.PromptError, match=r"token id 1000000, .* Give ids of the model\."):
                head.answer([1_000_000])
            with pytest.raises(shardhub.UsageError, match="`sampling` is 4"):
                head.answer("hi", 4)  # type: ignore[arg-type]

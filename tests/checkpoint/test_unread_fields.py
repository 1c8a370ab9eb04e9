"""Fields of config.json that mlx-lm reads by another name, or never: translated, refused, or without effect."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardhub.checkpoint import unread_fields
from shardhub.checkpoint.checkpoint import open_checkpoint
from shardhub.checkpoint.unread_fields import is_named, read_fields, warning
from shardhub.errors import UnsupportedModel
from tests import public, tiny

TABLE: dict[str, Any] = json.loads(Path(unread_fields.__file__).with_name("config_fields.json").read_text())
MODULES: dict[str, Any] = TABLE["modules"]
OWN = {name: entry for name, entry in MODULES.items() if "text" not in entry}
CASES = [(name, field) for name, entry in OWN.items() for field in (*entry["unread"], *TABLE["everywhere"])]
PUBLIC = sorted(path.stem for path in (Path(tiny.__file__).parent / "public_configs").glob("*.json"))


def config_of(name: str, **fields: Any) -> dict[str, Any]:
    """A model type's configuration with these fields where its module looks for them."""
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "max_position_embeddings": 4096,
    }
    part = shape
    for path, value in fields.items():
        *parents, last = path.split(".")
        place = part
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    if "part" in OWN[name]:
        return {"model_type": name, OWN[name]["part"]: part}
    return {"model_type": name, **part}


def values(name: str, field: str, rule: dict[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Values of a field that have no effect, and fields with which the field has one."""
    if "window" in rule:
        asked = {"use_sliding_window": True} if "asked" in rule else {}
        return [4096, 0], [{field: 3, **asked}]
    if "pattern" in rule and rule["default"] is None:
        return [["full_attention", "other"]], []
    if "pattern" in rule:
        every = rule["default"] or 1
        kinds = ["full_attention" if (index + 1) % every == 0 else "other" for index in range(12)]
        return [kinds], [{field: ["full_attention", "other"] * 6}]
    if "copy" in rule:
        return [], [{field: 0.375, rule["copy"]: 0.25}]
    return rule["same"], [{field: 0.375}, {field: "another"}]


def unread(config: dict[str, Any]) -> list[str]:
    return [one.name.removeprefix("text_config.") for one in read_fields(config).unread]


@pytest.mark.parametrize("name", sorted(OWN))
def test_field_is_refused_at_values_that_change_numbers_and_at_no_others(name: str) -> None:
    """Every field of the table passes if absent, null or neutral, and is named with its value otherwise."""
    assert unread(config_of(name)) == []
    rules = {**TABLE["everywhere"], **OWN[name]["unread"]}
    for field in OWN[name]["reads"]:
        rules.pop(field, None)
    for field, rule in rules.items():
        neutral, changing = values(name, field, rule)
        for value in (*neutral, None):
            assert unread(config_of(name, **{field: value})) == [], (field, value)
        for fields in changing:
            fields_unread = read_fields(config_of(name, **fields)).unread
            assert [one.name.removeprefix("text_config.") for one in fields_unread] == [field], fields
            assert fields_unread[0].value == fields[field]
            assert fields_unread[0].why


@pytest.mark.parametrize("name", sorted(name for name, entry in OWN.items() if (entry["rope"] or {}).get("theta")))
def test_rotary_parameters_are_translated_or_refused(name: str) -> None:
    """`rope_parameters` gives a module base and scaling by the names it reads; a scaling it lacks is refused."""
    rope, nested = OWN[name]["rope"], OWN[name].get("part")

    def part(config: Any) -> Any:
        return config[nested] if nested else config

    plain = read_fields(config_of(name, rope_parameters={"rope_type": "default", "rope_theta": 333.0}))
    assert plain.unread == ()
    assert unread_fields.at(part(plain.config), rope["theta"]) == 333.0
    assert part(plain.config)["rope_parameters"] == {"rope_type": "default", "rope_theta": 333.0}
    for kind in ("linear", "dynamic", "yarn", "llama3", "longrope", "unheard-of"):
        scaled = {"rope_type": kind, "rope_theta": 333.0, "factor": 4.0, "short_factor": [1.0], "long_factor": [1.0]}
        reading = read_fields(config_of(name, rope_parameters=scaled))
        if kind in rope["types"]:
            assert reading.unread == ()
            expected = {"type": kind, "rope_type": kind, "factor": 4.0}
            assert part(reading.config)["rope_scaling"].items() >= expected.items()
            assert "rope_theta" not in part(reading.config)["rope_scaling"]
        elif kind in rope["native_types"]:
            assert reading.unread == ()
        else:
            assert [one.name.removeprefix("text_config.") for one in reading.unread] == ["rope_parameters.rope_type"]
            assert reading.unread[0].value == kind
        again = read_fields(reading.config)
        assert (again.config, again.unread) == (reading.config, reading.unread)


def test_published_configuration_keeps_what_it_had(tmp_path: Path) -> None:
    """The translated file has the source's fields and the added ones, and the pipeline's digest covers both."""
    config = tiny.config("llama") | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    del config["rope_theta"]
    checkpoint = open_checkpoint(tiny.save(tiny.build(config), config, tmp_path / "model"))
    reading = read_fields(checkpoint.config)
    translated = checkpoint.with_config(reading.config)
    written = json.loads(translated.small_file("config.json"))
    assert written == {**config, "rope_theta": 5e5}
    assert reading.notes == (
        "config.json: mlx-lm reads these fields under other names; they are set in the published config.json: "
        "rope_theta = 500000.0",
    )
    assert checkpoint.with_config(checkpoint.config) is checkpoint


def test_rotary_parameters_come_before_the_old_names() -> None:
    """Where two bases differ `rope_parameters` decides, as in transformers, and the plan says so."""
    reading = read_fields({"model_type": "qwen2", "rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}})
    assert reading.config["rope_theta"] == 1e6
    assert any("rope_theta is changed from 10000.0 to" in note for note in reading.notes)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "granite", "olmo2", "stablelm"])
@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 777.0, "rope_parameters": {"rope_type": "default", "rope_theta": 555.0}},
        {"rope_theta": 777.0, "rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": {"rope_type": "default"}},
    ],
)
def test_base_is_the_one_transformers_takes(model_type: str, fields: dict[str, Any]) -> None:
    """The base that mlx-lm reads is that of transformers' own class, whatever the file contains."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[model_type](**copy.deepcopy(fields)).rope_parameters["rope_theta"]
    assert read_fields({"model_type": model_type, **fields}).config["rope_theta"] == theirs


def test_layers_with_windows_get_their_own_base() -> None:
    """gemma3's rotary embeddings by layer type become its three fields; a scaling of the windowed layers is refused."""
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    reading = read_fields({"model_type": "gemma3", "text_config": {"rope_parameters": nested}})
    text = reading.config["text_config"]
    assert (text["rope_theta"], text["rope_local_base_freq"]) == (1e6, 1e4)
    assert text["rope_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 8.0}
    nested["sliding_attention"] |= {"rope_type": "linear", "factor": 8.0}
    fields_unread = read_fields({"model_type": "gemma3_text", "rope_parameters": nested}).unread
    assert [one.name for one in fields_unread] == ["rope_parameters.sliding_attention.rope_type"]


def test_one_embedding_for_all_layers_takes_equal_ones_only() -> None:
    same = {kind: {"rope_type": "default", "rope_theta": 5e3} for kind in ("full_attention", "sliding_attention")}
    assert read_fields({"model_type": "exaone4", "rope_parameters": same}).config["rope_theta"] == 5e3
    same["sliding_attention"] = {"rope_type": "default", "rope_theta": 6e3}
    assert unread({"model_type": "exaone4", "rope_parameters": same}) == ["rope_parameters"]


def test_scalings_that_disagree_are_refused() -> None:
    config = {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    }
    (field,) = read_fields(config).unread
    assert (field.name, field.why) == ("rope_scaling", "it and rope_parameters disagree on factor")


def test_old_scaling_is_named_as_the_module_reads_it() -> None:
    """A module that reads `type` gets it where the file has only `rope_type`; a file with `type` stays unchanged."""
    scaling = {"rope_type": "linear", "factor": 4.0}
    translated = read_fields({"model_type": "deepseek", "rope_scaling": scaling}).config
    assert translated["rope_scaling"] == {**scaling, "type": "linear"}
    config = {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}
    assert read_fields(config).config is config


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"attention_factor": 1.0}, ["rope_scaling.attention_factor"]),
        ({"attention_factor": 1.1386294361119891}, []),
        ({"truncate": False}, ["rope_scaling.truncate"]),
        ({"truncate": True}, []),
    ],
)
def test_keys_of_a_scaling_that_mlx_lm_never_reads(fields: dict[str, Any], names: list[str]) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, **fields}
    assert unread({"model_type": "qwen2", "rope_scaling": scaling}) == names


def test_share_of_dimensions_follows_the_modules_own_name() -> None:
    given = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
    assert read_fields({"model_type": "phi", **given}).config["partial_rotary_factor"] == 0.5
    assert read_fields({"model_type": "gpt_neox", **given}).config["rotary_pct"] == 0.5
    assert unread({"model_type": "llama", **given}) == ["rope_parameters.partial_rotary_factor"]
    heads = {"model_type": "minimax", "head_dim": 128, **given}
    assert unread({**heads, "rotary_dim": 64}) == []
    assert unread({**heads, "rotary_dim": 32}) == ["rope_parameters.partial_rotary_factor"]


@pytest.mark.parametrize(
    ("fields", "is_live"),
    [
        ({"sliding_window": 3, "use_sliding_window": True}, True),
        ({"sliding_window": 3, "use_sliding_window": False}, False),
        ({"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 4}, False),
        ({"sliding_window": 3, "use_sliding_window": True, "layer_types": ["full_attention"] * 4}, False),
        ({"sliding_window": 4096, "use_sliding_window": True}, False),
        ({"sliding_window": None, "use_sliding_window": True}, False),
    ],
)
def test_window_counts_where_a_layer_has_it(fields: dict[str, Any], is_live: bool) -> None:
    assert unread(config_of("qwen2", **fields)) == ["sliding_window"] * is_live


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({"model_type": "exaone4", "sliding_window_pattern": "LLG"}, "sliding sliding full"),
        ({"model_type": "mimo_v2_flash", "hybrid_layer_pattern": [0, 1, 1]}, "full sliding sliding"),
        ({"model_type": "kimi_linear", "linear_attn_config": {"full_attn_layers": [2]}}, "linear full linear"),
        ({"model_type": "qwen3_next", "full_attention_interval": 3}, "linear linear full"),
        ({"model_type": "llama4"}, "chunked chunked chunked full"),
    ],
)
def test_kinds_of_layers_are_held_against_what_the_module_reads(fields: dict[str, Any], kinds: str) -> None:
    """The pattern in `layer_types` passes if it equals the one in the field that is read, else it is refused."""
    types = [f"{kind}_attention" for kind in kinds.split()]
    assert unread({**fields, "layer_types": types}) == []
    assert unread({**fields, "layer_types": types[::-1]}) == ["layer_types"] * (types != types[::-1])
    assert unread({**fields, "layer_types": ["sliding_attention"] * len(types)}) == ["layer_types"]


def test_window_as_long_as_the_session_is_a_note() -> None:
    """A window affects longer texts only: with sessions within it there is a note, and longer ones are refused."""
    reading = read_fields({"model_type": "gemma2", "sliding_window": 4096, "max_position_embeddings": 8192})
    reading.check("here", context=4096)
    (text,) = reading.later(4096)
    assert text.endswith(
        "of up to 4096 positions get the model's numbers. That changes nothing here, where sessions have 4096 positions"
    )
    assert reading.later(4097) == ()
    with pytest.raises(UnsupportedModel, match="never reads sliding_window \\(4096\\)"):
        reading.check("here", context=4097)


def test_refusal_names_field_value_reason_and_the_way_on() -> None:
    config = {"model_type": "qwen3", "hidden_act": "relu", "sliding_window": 3}
    with pytest.raises(UnsupportedModel) as caught:
        read_fields(config).check("ORG/MODEL", context=64)
    error = caught.value
    assert error.what == (
        'mlx-lm would not compute the numbers of ORG/MODEL: it never reads hidden_act ("relu"), sliding_window (3).'
    )
    assert "hidden_act: activation of the feed-forward layers; this module computes" in error.why
    assert error.hint.endswith("`ignore_fields` hidden_act `ignore_fields` sliding_window")
    read_fields(config).check("ORG/MODEL", context=64, ignored=("hidden_act", "sliding_window"))
    assert read_fields(config).ignored(("sliding_window", "nothing")) == ("sliding_window",)


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.floats() | st.sampled_from(["yarn", "default", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["rope_type", "type", "factor", "rope_theta", "full_attention", "attention_factor"]), inner
        )
    ),
    max_leaves=8,
)
_FIELDS = (
    "rope_parameters rope_scaling rope_theta partial_rotary_factor sliding_window layer_types hidden_act head_dim "
    "max_position_embeddings original_max_position_embeddings attn_config sliding_window_pattern text_config "
    "architectures floor_scale attn_temperature_tuning"
)


@given(st.sampled_from(sorted(MODULES)), st.dictionaries(st.sampled_from(_FIELDS.split()), _ANY))
def test_any_configuration_is_read_without_a_crash(name: str, fields: dict[str, Any]) -> None:
    """Whatever JSON the fields hold, it is translated, refused or left; values themselves are checked elsewhere."""
    config = {**fields, "model_type": name}
    before = copy.deepcopy(config)
    reading = read_fields(config)
    assert repr(config) == repr(before)
    assert json.dumps(dict(reading.config))
    assert all(one.name and one.why for one in reading.unread)


@given(st.lists(st.sampled_from(["a", "b", "rope"]), min_size=1, max_size=4))
def test_name_of_a_field_is_any_part_of_its_path(parts: list[str]) -> None:
    path = ".".join(parts)
    assert is_named(path, [path])
    assert all(is_named(path, [part]) for part in parts)
    assert not is_named(path, ["ro", "c", ""])


def test_text_model_inside_another_is_read_by_its_own_type() -> None:
    """mistral3 contains a llama or a ministral3: each is checked against its own module's fields."""
    nested = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    text = read_fields({"model_type": "mistral3", "text_config": {"model_type": "mistral", **nested}})
    assert text.config["text_config"]["rope_theta"] == 5e5
    own = {"model_type": "mistral3", "text_config": {"model_type": "ministral3", **nested}}
    assert read_fields(own).config is own
    window = {"model_type": "pixtral", "text_config": {"sliding_window": 3, "max_position_embeddings": 64}}
    assert [one.name for one in read_fields(window).unread] == ["text_config.sliding_window"]


def test_model_type_runs_by_the_module_mlx_lm_gives_it() -> None:
    """A remapped type is checked against its module's fields; an unknown type is left unchecked, with a note."""
    assert unread({"model_type": "kimi_k2", "scoring_func": "softmax"}) == ["scoring_func"]
    assert unread({"model_type": "mistral", "sliding_window": 3}) == ["sliding_window"]
    assert unread({"model_type": "llama", "sliding_window": 3}) == []
    reading = read_fields({"model_type": "of-tomorrow", "hidden_act": "relu"})
    assert reading.unread == ()
    assert "'of-tomorrow' never reads are not known" in reading.notes[0]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_configuration_is_read_whole(name: str) -> None:
    """No public model is refused, and none is translated if mlx-lm reads it as it is."""
    config = public.config(name)
    reading = read_fields(config)
    assert reading.unread == ()
    assert reading.config is config
    assert len(reading.notes) == (name == "gpt-oss-120b")


# Fields of public models that could be taken for others than their modules compute, as their publishers write them.
_WINDOWS_OFF = {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 28}
_YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
_LONG = {"long_factor": [1.0, 2.0], "short_factor": [1.0, 1.0], "type": "longrope"}
HEALTHY: list[dict[str, Any]] = [
    {"model_type": "llama", "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "rope_type": "llama3"}},
    {"model_type": "llama", "hidden_act": "silu", "pretraining_tp": 1, "rope_interleaved": False, "mlp_bias": False},
    {"model_type": "mistral", "sliding_window": None, "hidden_act": "silu"},
    {"model_type": "mixtral", "sliding_window": None, "router_aux_loss_coef": 0.02, "hidden_act": "silu"},
    {"model_type": "qwen2", **_WINDOWS_OFF, "hidden_act": "silu", "attention_dropout": 0.0},
    {"model_type": "qwen2", "rope_scaling": {**_YARN, "factor": 4.0}, **_WINDOWS_OFF},
    {"model_type": "qwen2_moe", **_WINDOWS_OFF, "norm_topk_prob": False, "decoder_sparse_step": 1},
    {"model_type": "qwen2_vl", **_WINDOWS_OFF, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
    {"model_type": "qwen3_moe", "attention_bias": False, "norm_topk_prob": True, "sliding_window": None},
    {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
    {"model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0},
    {"model_type": "gemma3_text", "attn_logit_softcapping": None, "sliding_window": 512, "sliding_window_pattern": 6},
    {"model_type": "gemma3", "text_config": {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}},
    {"model_type": "deepseek_v2", "scoring_func": "softmax", "norm_topk_prob": False, "rope_scaling": _YARN},
    {"model_type": "deepseek_v3", "scoring_func": "sigmoid", "rope_scaling": _YARN, "tie_word_embeddings": False},
    {"model_type": "kimi_k2", "scoring_func": "sigmoid", "rope_scaling": {**_YARN, "factor": 32.0}},
    {"model_type": "glm4", "partial_rotary_factor": 0.5, "attention_bias": True, "hidden_act": "silu"},
    {"model_type": "glm4_moe", "partial_rotary_factor": 0.5, "rope_scaling": None, "scoring_func": "sigmoid"},
    {"model_type": "phi", "hidden_act": "gelu_new", "partial_rotary_factor": 0.4, "qk_layernorm": False},
    {"model_type": "phi3", "rope_scaling": _LONG, "sliding_window": 262144, "max_position_embeddings": 131072},
    {"model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1, "summary_use_proj": True},
    {"model_type": "gpt_neox", "hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 10000},
    {"model_type": "stablelm", "partial_rotary_factor": 0.25, "hidden_act": "silu", "tie_word_embeddings": False},
    {"model_type": "nemotron", "hidden_act": "relu2", "partial_rotary_factor": 0.5},
    {"model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 16.0, "residual_multiplier": 0.22},
    {"model_type": "cohere", "logit_scale": 0.0625, "hidden_act": "silu"},
    {"model_type": "minicpm", "scale_emb": 12, "dim_model_base": 256, "scale_depth": 1.4, "hidden_act": "silu"},
    {"model_type": "internlm2", "rope_scaling": {"type": "dynamic", "factor": 2.0}, "bias": False},
    {"model_type": "exaone", "activation_function": "silu", "rope_scaling": {"factor": 8.0, "rope_type": "llama3"}},
    {"model_type": "recurrent_gemma", "hidden_activation": "gelu_pytorch_tanh", "partial_rotary_factor": 0.5},
    {"model_type": "falcon_mamba", "hidden_act": "silu", "layer_norm_epsilon": 1e-05, "residual_in_fp32": True},
    {"model_type": "minimax_m2", "rotary_dim": 64, "head_dim": 128, "scoring_func": "sigmoid", "hidden_act": "silu"},
    {"model_type": "smollm3", "use_sliding_window": False, "sliding_window": None, "layer_types": ["full_attention"]},
    {"model_type": "olmo2", "hidden_act": "silu", "attention_bias": False},
    {"model_type": "gpt_oss", "attention_bias": True, "swiglu_limit": 7.0, "hidden_act": "silu"},
]


@pytest.mark.parametrize("config", HEALTHY, ids=lambda config: config["model_type"])
def test_healthy_model_is_neither_refused_nor_changed(config: dict[str, Any]) -> None:
    """Fields as public models have them, with the values their modules compute, change nothing."""
    reading = read_fields(config)
    assert reading.unread == ()
    assert reading.config is config


def test_published_pipelines_say_what_is_not_read() -> None:
    """A pipeline published without the translation runs with a warning, other pipelines without one."""
    old = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert "Split the model again" in warning(old, 4096)
    assert warning({**old, "rope_theta": 5e5, "shardhub": {"index": 0}}, 4096) == ""
    assert "never reads hidden_act" in warning({**old, "rope_theta": 5e5, "hidden_act": "relu"}, 4096)
    windowed = {"model_type": "gemma2", "sliding_window": 4096}
    assert (warning(windowed, 4096), bool(warning(windowed, 8192))) == ("", True)

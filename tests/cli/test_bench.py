"""`shardhub bench` over real nodes: the requests that it runs, to the token, and its report."""

from __future__ import annotations

import asyncio
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from shardhub.chain.links import describe
from shardhub.cli.commands.bench import parse_levels
from shardhub.cli.plot import check_plot
from shardhub.errors import UsageError
from shardhub.usecases.bench import Answered, percentiles, random_prompts, summarize
from tests import cut, nodes

NUM_PROMPT = 20
NUM_TOKENS = 5
NUM_ROUNDS = 2
NUM_WARM = 4
MAX_SESSIONS = 3
SIZES = ("--prompt-tokens", NUM_PROMPT, "--tokens", NUM_TOKENS, "--rounds", NUM_ROUNDS)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("bench")
    model = cut.tiny_model(folder / "model")
    tiny_tokenizer(model)
    return cut.cut(model, folder / "out", (3,))


@pytest.fixture(scope="module")
def served(pipeline):
    groups = [(cut.shard_folder(pipeline, index),) for index in range(2)]
    started = nodes.start(*groups, options=("--context", "64", "--max-sessions", str(MAX_SESSIONS)))
    yield started
    nodes.stop_all(started)


def bench(pipeline, served, *options, env=None):
    named = [part for node in served for part in ("--node", node.address)]
    return nodes.shardhub("bench", "--manifest", pipeline.folder, *named, *SIZES, *options, env=env)


def loads(served):
    async def run():
        return [(await describe(node.address)).load for node in served]

    return asyncio.run(run())


def test_bench_runs_what_it_says_and_leaves_nothing(pipeline, served, tmp_path) -> None:
    """Each level's requests, warm-up included, raise every node's counters by exactly their ids and tokens."""
    before = loads(served)
    plot = tmp_path / "plot.svg"
    result = bench(pipeline, served, "--concurrency", "1,3", "--json", "--plot", plot)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert [level["concurrency"] for level in report["levels"]] == [1, 3]
    for level in report["levels"]:
        num_requests = level["concurrency"] * NUM_ROUNDS
        assert level["num_requests"] == num_requests
        assert level["num_tokens"] == num_requests * NUM_TOKENS
        assert level["num_prompt_tokens"] == num_requests * NUM_PROMPT
        assert level["tokens_per_s"] == pytest.approx(level["num_tokens"] / level["wall_s"])
        for seconds in (level["first_token_s"], level["inter_token_s"]):
            assert 0 < seconds["p50"] <= seconds["p90"] <= seconds["p99"] <= level["wall_s"]
    num_warm, num_measured = 1 + 3, (1 + 3) * NUM_ROUNDS
    for old, new in zip(before, loads(served), strict=True):
        risen = {name: new[name] - old[name] for name in ("prefill_ids", "decode_ids")}
        prompts = (num_warm + num_measured) * NUM_PROMPT
        assert sum(risen.values()) == prompts + num_warm * (NUM_WARM - 1) + num_measured * (NUM_TOKENS - 1)
        # A prompt's last id may go with others' decode steps.
        assert 0 <= prompts - risen["prefill_ids"] <= num_warm + num_measured
        assert new["sessions"] == new["parked_sessions"] == new["kv_reserved_bytes"] == 0
        assert new["failures"] == old["failures"]
    assert [host["at"] for host in report["hosts"]] == [f"stage {i} at {node.address}" for i, node in enumerate(served)]
    for host in (*report["hosts"], report["head"]):
        assert host["mlx"]
        assert host["backend"]
    assert report["pipeline_id"] == pipeline.manifest.pipeline_id
    assert (report["prompt_tokens"], report["tokens"], report["seed"]) == (NUM_PROMPT, NUM_TOKENS, 0)
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_bench_prints_a_row_for_each_level_the_nodes_take(pipeline, served, tmp_path) -> None:
    """The levels are 1, 2 and so on up to the nodes' sessions; where it ran goes to stderr; a PNG is drawn."""
    plot = tmp_path / "plot.png"
    result = bench(pipeline, served, "--plot", plot)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["concurrency", "tokens/s"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert len({len(line) for line in lines}) == 1
    assert "\x1b" not in result.stdout
    for node in served:
        assert f"at {node.address}: shardhub " in result.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bench_without_matplotlib_measures_and_says_how_to_draw(pipeline, served, tmp_path) -> None:
    """Where matplotlib cannot be imported there is a hint and no plot, and all figures are reported."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')\n")
    plot = tmp_path / "plot.png"
    options = ("--concurrency", "1", "--rounds", "1", "--json", "--plot", plot)
    result = bench(pipeline, served, *options, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert "pip install 'shardhub[bench]'" in result.stderr
    assert not plot.exists()
    assert len(json.loads(result.stdout)["levels"]) == 1


def test_bench_refuses_what_no_session_holds(pipeline, served) -> None:
    """A request beyond the sessions' context ends with exit code 2 and one screen before anything is sent."""
    before = loads(served)
    result = bench(pipeline, served, "--tokens", "60")
    assert result.returncode == 2, result.stderr
    assert "do not fit" in result.stderr
    assert "Traceback" not in result.stderr
    assert [load["prefill_steps"] for load in loads(served)] == [load["prefill_steps"] for load in before]


def test_plot_is_refused_before_anything_is_measured(tmp_path) -> None:
    """A plot must be a PNG or an SVG in an existing folder; anything else is refused before the measurement."""
    with pytest.raises(UsageError, match="neither a PNG nor an SVG"):
        check_plot(tmp_path / "plot.jpg")
    with pytest.raises(UsageError, match="does not exist"):
        check_plot(tmp_path / "nowhere" / "plot.png")
    assert check_plot(tmp_path / "plot.PNG")


def test_prompts_depend_on_the_seed_alone() -> None:
    """The same seed draws the same ids and another seed others; all are within the vocabulary."""

    def draw(seed):
        return random_prompts(np.random.default_rng([seed, 2, 2]), num_prompts=4, length=50, vocab_size=300)

    assert draw(1) == draw(1) != draw(2)
    assert [len(prompt) for prompt in draw(1)] == [50] * 4
    assert 0 <= min(map(min, draw(1))) <= max(map(max, draw(1))) < 300


def test_level_puts_requests_together() -> None:
    """First and later tokens are measured separately; a request's rate excludes its first token."""
    answers = [Answered(first_s=1.0, between_s=(0.5, 0.5)), Answered(first_s=3.0, between_s=(0.25, 0.25))]
    level = summarize(2, 7, answers, wall_s=4.0)
    assert (level.num_requests, level.num_prompt_tokens, level.num_tokens) == (2, 14, 6)
    assert level.tokens_per_s == 1.5
    assert level.request_tokens_per_s == 3.0
    assert level.first_token_s["p50"] == 2.0
    assert percentiles([float(v) for v in range(101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}


def test_levels_are_read() -> None:
    """Levels are numbers separated by commas; anything else is refused."""
    assert parse_levels("1, 2,16") == (1, 2, 16)
    assert parse_levels(None) == ()
    for text in ("", "0", "1,,2", "-1", "1.5"):
        with pytest.raises(UsageError, match="not a list of numbers"):
            parse_levels(text)

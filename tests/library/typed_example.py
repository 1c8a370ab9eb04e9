"""A program that uses all of the library, for a type checker; it is never run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import shardhub


class Watching:
    """A watcher."""

    def note(self, text: str) -> None:
        print(text)

    def doing(self, activity: str) -> None:
        print(activity)

    def progress(self, state: shardhub.Progress) -> None:
        print(state.activity, state.item, state.share, state.unit, state.is_finished)

    def ask(self, question: str) -> bool | None:
        return None


WATCHER: shardhub.Watcher = Watching()


def prepare(model: str) -> str:
    """Plan, split and publish; returns the pipeline's folder."""
    cut = shardhub.Cut(machines=("mini=16GB", "studio=64GB"), context=4096)
    made: shardhub.ModelPlan = shardhub.plan(model, cut, shardhub.PlanSettings(proof=True), WATCHER)
    quantisation = shardhub.Quantisation(bits=4, group_size=64, mode="affine", recipe=None)
    verdict: shardhub.Verdict = made.verdict
    if verdict.error is not None:
        raise verdict.error
    parity = shardhub.ParitySettings(memory="8GB", allow_inexact=False)
    split: shardhub.Split = shardhub.split(
        model, Path("out"), cut, shardhub.SplitSettings(name="example", parity=parity), WATCHER
    )
    publication: shardhub.Publication = shardhub.publish(
        model, cut, shardhub.PublishSettings(private=True, parity=parity, quantisation=quantisation), WATCHER
    )
    print(publication.shards, publication.pipeline, publication.pipeline_id)
    pushed: shardhub.Publication = shardhub.push("out", shardhub.PushSettings(private=True), WATCHER)
    listed: tuple[shardhub.PublishedPipeline, ...] = shardhub.search(
        "example", shardhub.SearchSettings(limit=10), WATCHER
    )
    print(pushed.pipeline, [(one.repo, one.parity_line) for one in listed])
    pulled: tuple[shardhub.Pulled, ...] = shardhub.pull(
        publication.pipeline, shardhub.PullSettings(shards=True), WATCHER
    )
    print([folder.name for one in pulled for folder in one.folders])
    assert split.pipeline is not None
    return str(split.pipeline)


def check(pipeline: str) -> bool:
    """Verify, check by check."""

    def show(check: shardhub.Check) -> None:
        print(check.state, check.what, check.why)

    report: shardhub.Verification = shardhub.verify(
        pipeline, shardhub.VerifySettings(fetch=True), WATCHER, on_check=show
    )
    return report.ok and report.is_proven


def check_numbers(pipeline: str) -> bool:
    """Verify against the whole model, on live nodes, and against the source's bytes."""
    reference: shardhub.ReferenceRecord = shardhub.verify_reference(
        pipeline, shardhub.ReferenceSettings(num_tokens=8, memory="8GB"), WATCHER
    )
    print(reference.place, reference.record.num_tokens)
    live: shardhub.RunVerification = shardhub.verify_run(shardhub.HeadSettings(pipeline=pipeline), WATCHER)
    print(live.tokens_equal, live.promise, [difference.chosen for difference in live.differences])
    source: shardhub.SourceVerification = shardhub.verify_source(
        pipeline, shardhub.SourceSettings(num_tensors=10, seed=1), WATCHER
    )
    print(source.num_compared, source.source, [tensor.name for tensor in source.different])
    return live.ok and source.ok


def watch(pipeline: str, keys_file: Path) -> None:
    """The status of a chain, its speed, and a gateway over it."""
    live: shardhub.LiveStatus = shardhub.live_status(
        shardhub.StatusSettings(pipeline=pipeline, interval_s=2.0), WATCHER
    )
    for seen in live:
        status: shardhub.ChainStatus = seen
        first: shardhub.NodeStatus = status.nodes[0]
        print(first.reading.address, first.rates, status.limit)
        break

    def show(level: shardhub.BenchLevel) -> None:
        print(level.concurrency, level.tokens_per_s, level.first_token_s["p50"])

    report: shardhub.BenchReport = shardhub.bench(
        pipeline, shardhub.BenchSettings(levels=(1, 8)), WATCHER, on_level=show
    )
    print(report.hosts, report.record())
    keys: shardhub.Keys = shardhub.read_keys(keys_file)
    with shardhub.open_gateway(pipeline, shardhub.GatewaySettings(port=0, keys=keys), WATCHER) as opened:
        gateway: shardhub.RunningGateway = opened
        facts: shardhub.GatewayFacts = gateway.facts
        print(facts.url, facts.model_name)
        gateway.stop()
        gateway.wait()


def run(pipeline: str) -> None:
    """A node and a head in threads."""
    with shardhub.serve(pipeline, shardhub.ServeSettings(stages="0", port=0), WATCHER) as node:
        serving: shardhub.Node = node
        facts: shardhub.NodeFacts = serving.facts
        print(facts.start, facts.stop, facts.context)
        settings = shardhub.HeadSettings(
            pipeline=pipeline, nodes=(node.address,), recovery=shardhub.Recovery.EXACT, recover_wait_s=5.0
        )
        with shardhub.open_head(settings, WATCHER) as opened:
            head: shardhub.Head = opened
            stream: shardhub.AnswerStream = head.stream("Hello", shardhub.Sampling(max_tokens=8))
            for each in stream:
                piece: shardhub.Piece = each
                print(piece.text)
            answer: shardhub.Answer = head.answer([1, 2, 3])
            usage: shardhub.Usage = answer.usage
            print(usage.tokens_per_s, head.chat([{"role": "user", "content": "Hello"}]).text)
            scored: tuple[shardhub.ScoredToken, ...] = head.score("a b c")
            status: shardhub.HeadStatus = head.status()
            places: tuple[shardhub.StagesAt, ...] = status.stages
            print(scored[0].logprob, places[0].at)
        node.stop()
        print(node.wait())


async def run_async(pipeline: str) -> None:
    """A head for coroutines."""
    try:
        async with shardhub.open_head(pipeline) as opened:
            head: shardhub.AsyncHead = opened
            stream: shardhub.AsyncAnswerStream = head.stream("Hello")
            async for piece in stream:
                print(piece.text)
            print(stream.answer.text, (await head.answer("Hello")).text, head.status().context)
            await head.score("a b c")
    except shardhub.ShardhubError as error:
        print(error.what, error.why, error.hint)


if __name__ == "__main__":
    folder = prepare("ORG/MODEL")
    if check(folder) and check_numbers(folder):
        run(folder)
        watch(folder, Path("keys"))
        asyncio.run(run_async(folder))

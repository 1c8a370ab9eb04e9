"""What the gateway itself costs a streamed token: processor time of a head behind HTTP, less that of a bare head.

    python -m benchmarks.gateway_cost [--tokens 400] [--rounds 3]

Both run in one process over the demo's two nodes, by turns; the HTTP client is another process. Prints a JSON record.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from shardhub.chain.head import Head
from shardhub.chain.request import Request
from shardhub.gateway.server import Gateway, listening
from shardhub.gateway.settings import GatewaySettings
from shardhub.parameters import SamplingParameters
from shardhub.shard import read_pipeline
from shardhub.usecases.demo_chain import demo_chain

MESSAGES = [{"role": "user", "content": "Tell me a long story."}]
_CLIENT = """
import json, sys, httpx
body = json.loads(sys.argv[2])
with httpx.stream("POST", sys.argv[1] + "/v1/chat/completions", json=body, timeout=600) as answer:
    chunks = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
print(json.loads(chunks[-1])["usage"]["completion_tokens"])
"""


async def bare(head: Head, num_tokens: int) -> float:
    """Milliseconds of processor time a token, without a gateway."""
    prompt = head.tokenizer.render_chat(MESSAGES).ids
    started, num = time.process_time(), 0
    async for _ in head.scheduler.submit(
        Request(prompt=prompt, parameters=SamplingParameters(), max_tokens=num_tokens)
    ):
        num += 1
    return (time.process_time() - started) * 1000 / num


async def served(url: str, num_tokens: int) -> float:
    """The same, streamed to a client."""
    body: dict[str, Any] = {
        "messages": MESSAGES,
        "max_tokens": num_tokens,
        "stream": True,
        "ignore_eos": True,
        "temperature": 0,
    }
    body["stream_options"] = {"include_usage": True}
    started = time.process_time()
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CLIENT, url, json.dumps(body), stdout=asyncio.subprocess.PIPE
    )
    counted, _ = await client.communicate()
    if int(counted) != num_tokens:
        raise SystemExit(f"the stream had {counted.decode().strip()} tokens of {num_tokens}")
    return (time.process_time() - started) * 1000 / num_tokens


async def run(pipeline: Path, nodes: tuple[str, ...], *, num_tokens: int, rounds: int) -> dict[str, Any]:
    """All rounds."""
    head = await Head.start(read_pipeline(pipeline), nodes, context=1024, allow_local=False)
    settings = GatewaySettings(port=0)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    try:
        with listening(settings) as listener:
            gateway = Gateway(head, settings)
            serving = asyncio.create_task(gateway.run(listener, on_ready=ready.set_result))
            url = await ready
            await served(url, 8)
            timings = [(await bare(head, num_tokens), await served(url, num_tokens)) for _ in range(rounds)]
            gateway.stop()
            await serving
    finally:
        await head.stop()
        head.tokenizer.close()
    return {
        "tokens": num_tokens,
        "bare_ms": [round(one, 3) for one, _ in timings],
        "served_ms": [round(one, 3) for _, one in timings],
        "gateway_ms": round(statistics.median(s - b for b, s in timings), 3),
    }


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with demo_chain() as chain:
        done = asyncio.run(run(chain.pipeline, chain.addresses, num_tokens=options.tokens, rounds=options.rounds))
    print(json.dumps(done))


if __name__ == "__main__":
    main()

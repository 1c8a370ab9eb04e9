"""A gateway of several models: which chain answers, how load is shared, and chains that come and go."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import openai
import pytest

import shardhub
from shardhub.errors import UsageError
from tests import cut, nodes
from tests.gateway.conftest import PIECE_S
from tests.gateway.serving import GatewayProcess
from tests.gateway.several import MODELS, NODE_OPTIONS, three_models
from tests.nodes import shardhub as run_shardhub
from tests.ports import kept
from tests.proxy import Proxy
from tests.waiting import wait_until

HI = [{"role": "user", "content": "hi"}]
NAMES = list(MODELS)
NUM_AT_ONCE = 10


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    with three_models(tmp_path_factory.mktemp("three")) as served:
        yield served


@pytest.fixture(scope="module")
def gateway(three):
    """A gateway of all three, with one list of nodes in any order."""
    process = GatewayProcess(three.folders, three.addresses[::-1], ("--no-local",))
    try:
        yield process
    finally:
        assert process.stop() == 0, "the gateway did not end well"


@pytest.fixture(scope="module")
def client(gateway):
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)


def ask(client, model, num_tokens=8, **fields):
    """The answer's text to one question, with the likeliest tokens."""
    answer = client.chat.completions.create(model=model, messages=HI, max_tokens=num_tokens, temperature=0, **fields)
    return answer.choices[0].message.content


def ask_ollama(http, model):
    """The same by Ollama's API."""
    options = {"num_predict": 8, "temperature": 0}
    answer = http.post("/api/chat", json={"model": model, "messages": HI, "stream": False, "options": options})
    return answer.json()["message"]["content"]


def settings_of(three, name, *addresses):
    """The settings of a head of one model, by its own node unless others are given."""
    nodes_of = addresses or (three.nodes[name].address,)
    return shardhub.HeadSettings(pipeline=three.pipelines[name].folder, nodes=nodes_of, allow_local=False)


@contextmanager
def streaming(client, model, num_tokens):
    """An answer in a thread of its own; gives a function that returns its text once it has ended."""
    began = threading.Event()

    def read() -> str:
        text = ""
        chunks = client.chat.completions.create(
            model=model, messages=HI, max_tokens=num_tokens, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        for chunk in chunks:
            text += chunk.choices[0].delta.content or ""
            began.set()
        return text

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        assert began.wait(60)
        yield reading


def test_each_model_is_listed_and_answers_for_itself(three, gateway, client) -> None:
    """Every API lists all models in the order given; a request's model decides which one answers."""
    assert gateway.ready["models"] == NAMES
    assert [model.id for model in client.models.list()] == NAMES
    answers = {}
    for name in NAMES:
        assert client.models.retrieve(name).id == name
        with shardhub.open_head(settings_of(three, name)) as head:
            answers[name] = head.answer("hi", shardhub.Sampling(max_tokens=8)).text
        assert ask(client, name) == answers[name]
    assert len(set(answers.values())) == len(NAMES)
    with httpx.Client(base_url=gateway.url, timeout=60) as http:
        tags = [model["name"] for model in http.get("/api/tags").json()["models"]]
        assert tags == [f"{name}:latest" for name in NAMES]
        assert [model["name"] for model in http.get("/api/ps").json()["models"]] == tags
        listed = http.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
        assert [model["id"] for model in listed["data"]] == NAMES
        body = {"messages": HI, "max_tokens": 8, "temperature": 0}
        assert http.post("/v1/chat/completions", json=body).json()["model"] == "ant"
        block = http.post("/v1/messages", json=body | {"model": "bee"}).json()
        assert (block["model"], block["content"][0]["text"]) == ("bee", answers["bee"])
        assert ask_ollama(http, "cat:latest") == answers["cat"]
        made = http.post("/v1/responses", json={"model": "cat", "input": "hi", "max_output_tokens": 16}).json()
        after = {"model": "bee", "input": "more", "previous_response_id": made["id"], "max_output_tokens": 16}
        assert http.post("/v1/responses", json=after).json()["model"] == "bee"


def test_unknown_names_are_refused_with_those_that_exist(client, gateway) -> None:
    """Another name is not found, in each API's words, and the message lists the models."""
    with pytest.raises(openai.NotFoundError, match="serves 'ant', 'bee' and 'cat'") as caught:
        ask(client, "dog")
    assert caught.value.code == "model_not_found"
    answer = httpx.post(f"{gateway.url}/api/chat", json={"model": "dog", "messages": HI})
    assert (answer.status_code, answer.json()) == (404, {"error": "model 'dog' not found"})


def test_a_star_takes_any_name_and_known_names_keep_their_models(three) -> None:
    """With `*` an unknown name gets the first model's answer under that name; known names lead where they did."""
    heads = [settings_of(three, name) for name in NAMES]
    settings = shardhub.GatewaySettings(port=0, model_names=("*",))
    with shardhub.open_gateway(heads, settings) as gateway:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any")
        texts = {name: ask(client, name) for name in NAMES}
        answer = client.chat.completions.create(model="gpt-mini", messages=HI, max_tokens=8, temperature=0)
        assert (answer.model, answer.choices[0].message.content) == ("gpt-mini", texts["ant"])
        with httpx.Client(base_url=gateway.url, timeout=60) as http:
            assert ask_ollama(http, "bee:latest") == texts["bee"]


def test_health_and_metrics_are_by_model(client, gateway) -> None:
    """Readiness and every metric name each model; one model's readiness can be asked for."""
    ask(client, "bee")
    with httpx.Client(base_url=gateway.url, timeout=60) as http:
        ready = http.get("/health/ready").json()
        assert (ready["status"], ready["model"], list(ready["models"])) == ("ok", "ant", NAMES)
        assert {state["status"] for state in ready["models"].values()} == {"ok"}
        assert http.get("/health/ready", params={"model": "bee"}).json()["model"] == "bee"
        assert http.get("/health/ready", params={"model": "dog"}).status_code == 404
        text = http.get("/metrics").text
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.search(r'[{,]model="(ant|bee|cat)"', line) for line in samples)
    assert len([line for line in text.splitlines() if line.startswith("# TYPE shardhub_requests ")]) <= 1
    for name in NAMES:
        assert any(f'model="{name}"' in line and "shardhub_open_requests" in line for line in samples)


def test_one_name_for_several_models_is_refused(three) -> None:
    """A name of one's own for pipelines of different models is an error, as is a pipeline that is given twice."""
    addresses = [part for address in three.addresses for part in ("--node", address)]
    ended = run_shardhub("gateway", *three.folders, *addresses, "--model-name", "mine", "--port", "0")
    assert ended.returncode == 2
    assert "--model-name gives one name to 3 pipelines" in ended.stderr
    head = settings_of(three, "ant")
    with pytest.raises(UsageError, match="given twice"):
        shardhub.open_gateway([head, head])


def test_load_is_shared_between_chains_of_one_model(three) -> None:
    """Two chains of a model get requests in turn, and as many each while many run; the least loaded is chosen."""
    folders = tuple(cut.shard_folder(three.pipelines["ant"], index) for index in range(2))
    (other,) = nodes.start(folders, options=NODE_OPTIONS)
    lines = [Proxy(three.nodes["ant"].address), Proxy(other.address)]
    heads = [settings_of(three, "ant", line.address) for line in lines] + [settings_of(three, "bee")]
    try:
        with shardhub.open_gateway(heads, shardhub.GatewaySettings(port=0)) as gateway:
            client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any")

            def counts(metric) -> list[int]:
                text = httpx.get(f"{gateway.url}/metrics", timeout=60).text
                pattern = rf'^{metric}{{chain="(?:0|1)",model="ant"(?:,outcome="length")?}} (\d+)'
                return [int(count) for count in re.findall(pattern, text, re.MULTILINE)]

            assert [model.id for model in client.models.list()] == ["ant", "bee"]
            assert client.models.retrieve("ant").num_chains == 2
            assert len({ask(client, "ant") for _ in range(6)}) == 1
            assert counts("shardhub_requests_total") == [3, 3]
            for line in lines:
                line.slow(PIECE_S)
            with ExitStack() as running:
                for _ in range(NUM_AT_ONCE):
                    running.enter_context(streaming(client, "ant", 100))
                assert counts("shardhub_open_requests") == [NUM_AT_ONCE // 2] * 2
                for line in lines:
                    line.heal()
    finally:
        nodes.stop_all([other])
        for line in lines:
            line.close()


def test_removing_and_adding_a_model_disturbs_no_other_stream(three) -> None:
    """A model that is removed finishes its answers and takes no more; streams of the others do not notice."""
    lines = {name: Proxy(three.nodes[name].address) for name in ("ant", "bee")}
    heads = {name: settings_of(three, name, line.address) for name, line in lines.items()}
    heads["cat"] = settings_of(three, "cat")
    try:
        with shardhub.open_gateway(list(heads.values()), shardhub.GatewaySettings(port=0)) as gateway:
            client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)
            whole = {name: ask(client, name, 60, extra_body={"ignore_eos": True}) for name in lines}
            for line in lines.values():
                line.slow(PIECE_S)
            with streaming(client, "ant", 60) as staying, streaming(client, "bee", 60) as leaving:
                gateway.serve([heads["ant"], heads["cat"]])
                wait_until(lambda: [model.id for model in client.models.list()] == ["ant", "cat"])
                with pytest.raises(openai.NotFoundError):
                    ask(client, "bee")
                assert not leaving.done()
                assert ask(client, "cat")
                assert leaving.result(60) == whole["bee"]
                assert staying.result(60) == whole["ant"]
            lines["bee"].heal()
            gateway.serve([heads["ant"], heads["cat"], heads["bee"]])
            wait_until(lambda: [model.id for model in client.models.list()] == ["ant", "cat", "bee"])
            assert ask(client, "bee", 60, extra_body={"ignore_eos": True}) == whole["bee"]
            gateway.serve([])
            wait_until(lambda: not client.models.list().data)
            with pytest.raises(openai.InternalServerError, match="No model is served now"):
                ask(client, "ant")
    finally:
        for line in lines.values():
            line.close()


def test_a_model_without_nodes_delays_no_other(three) -> None:
    """The other models are served; its own requests say what is missing, until its node comes."""
    stopped = nodes.Node(*(cut.shard_folder(three.pipelines["cat"], index) for index in range(2)))
    address = stopped.wait_ready().address
    nodes.stop_all([stopped])
    addresses = [three.nodes["ant"].address, three.nodes["bee"].address, address]
    gateway = GatewayProcess(three.folders, addresses, ("--no-local",))
    started = []
    try:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0)
        assert gateway.ready["models"] == ["ant", "bee"]
        assert ask(client, "bee")
        with pytest.raises(openai.InternalServerError, match="'cat' is not served yet: No node serves stages 0"):
            ask(client, "cat")
        ready = httpx.get(f"{gateway.url}/health/ready").json()["models"]
        assert {name: state["status"] for name, state in ready.items()} == {
            "ant": "ok",
            "bee": "ok",
            "cat": "unavailable",
        }
        with kept(int(address.rpartition(":")[2])) as port:
            folders = [cut.shard_folder(three.pipelines["cat"], index) for index in range(2)]
            started.append(nodes.Node(*folders, options=("--port", str(port))).wait_ready())
        wait_until(lambda: [model.id for model in client.models.list()] == NAMES)
        assert ask(client, "cat")
    finally:
        gateway.stop()
        nodes.stop_all(started)

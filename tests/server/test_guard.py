"""Who may talk to the server, and what may be said: refusals are clear, and the server lives on."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest

from edgecal.errors import OptionError
from edgecal.server import Served, ServerOptions
from tests.server.conftest import Running, load_engine, running

TOKEN = "a-token-of-some-length"
HI = {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def guarded(folder):
    options = ServerOptions(
        token=TOKEN, hosts=("pi.example",), origins=("https://app.example",), max_body=10_000, max_tokens=100
    )
    with running(lambda: Served(load_engine(folder), "tiny"), options) as found:
        yield found


@pytest.fixture
def http(guarded: Running) -> httpx.Client:
    with guarded.client(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client
        assert client.get("/v1/models").status_code == 200, "the server is alive"


WRONG = [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"]
GUARDED = [("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/app/state"), ("GET", "/x")]


@pytest.mark.parametrize("given", WRONG)
def test_without_the_token(guarded, http, given):
    headers = {} if given is None else {"Authorization": given.encode()}
    with guarded.client(headers=headers) as stranger:
        for method, path in GUARDED:
            found = stranger.request(method, path, json=HI if method == "POST" else None)
            assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer"
            assert found.json()["error"]["type"] == "authentication_error"
        assert stranger.get("/health").status_code == 200
        assert stranger.get("/").status_code == stranger.get("/app.js").status_code == 200


OWN = ["localhost", "127.0.0.1:9", "[::1]:80", "192.168.1.7", "pi.example", socket.gethostname()]
FOREIGN = ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b", "[::1"]


@pytest.mark.parametrize("host", OWN)
def test_own_hosts(http, host):
    assert http.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_hosts(http, host):
    found = http.get("/health", headers={"Host": host})
    assert found.status_code == 403 and found.json()["error"]["type"] == "forbidden_error"


def test_pages_of_others(guarded, http):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        found = http.post("/v1/chat/completions", json=HI, headers={"Origin": origin})
        assert found.status_code == 403 and "access-control-allow-origin" not in found.headers
    own = http.post("/v1/chat/completions", json=HI, headers={"Origin": guarded.url})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    allowed = http.post("/v1/chat/completions", json=HI, headers={"Origin": "https://app.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    asked = {"Origin": "https://app.example", "Access-Control-Request-Headers": "authorization"}
    preflight = http.options("/v1/chat/completions", headers=asked)
    assert preflight.status_code == 204 and preflight.headers["access-control-allow-headers"] == "authorization"
    assert http.options("/v1/chat/completions", headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("content", "status", "text"),
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (b'"x"', 400, "must be a JSON object"),
        (b'{"messages": "\xff"}', 400, "the body is not UTF-8"),
        (b"[" * 9_000, 400, "nested too deep"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "not valid Unicode"),
        (json.dumps({"prompt": "x" * 20_000}).encode(), 413, "more than 10,000 bytes"),
        (b"x" * 10_000_000, 413, "more than 10,000 bytes"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/app/answer"])
def test_bad_bodies(http, content, status, text, path):
    if b"ud800" in content and path != "/v1/chat/completions":
        pytest.skip("it has no messages")
    found = http.post(path, content=content)
    assert found.status_code == status and text in found.json()["error"]["message"]
    assert len(found.json()["error"]["message"]) <= 600


def test_a_chunked_body_that_is_too_large(http):
    found = http.post("/v1/chat/completions", content=(b"x" * 1000 for _ in range(3000)))
    assert found.status_code == 413


def wait_until_idle(server: Running) -> None:
    for _ in range(500):
        if not server.served.running.n_running and not server.served.running.n_waiting:
            return
        time.sleep(0.01)
    raise AssertionError("requests are left over")


def raw(server: Running, content: bytes, length: int | None = None) -> socket.socket:
    """A connection on which this was sent, of a body that is said to have `length` bytes."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", f"Authorization: Bearer {TOKEN}",
            f"Content-Length: {length or len(content)}", "", "")  # fmt: skip
    connection.sendall("\r\n".join(head).encode() + content)
    return connection


LONG = {"messages": HI["messages"], "max_tokens": 100, "stream": True}


@pytest.fixture
def slowly(guarded, monkeypatch):
    """5 ms a pass, so that there is time to leave."""
    step = guarded.engine.model._step

    def delayed(*arguments):
        time.sleep(0.005)
        return step(*arguments)

    monkeypatch.setattr(guarded.engine.model, "_step", delayed)


@pytest.mark.parametrize("stage", ["before the body", "in the body", "at once", "in the answer", "whole"])
@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave(guarded, http, slowly, stage, stream):
    body = {**LONG, "stream": stream}
    if stage in ("before the body", "in the body"):
        connection = raw(guarded, b"" if stage == "before the body" else b'{"messages"', 500)
    else:
        connection = raw(guarded, json.dumps(body).encode())
        if stage == "in the answer" and stream:
            while b"content" not in connection.recv(1 << 16):
                pass
        elif stage != "at once":
            time.sleep(0.1)
    connection.close()
    wait_until_idle(guarded)
    assert not guarded.engine.prefixes._leased


def test_signs_of_life_while_there_is_nothing(guarded, http, monkeypatch):
    monkeypatch.setattr("edgecal.server.events.PING_S", 0.05)
    step = guarded.engine.model._step

    def delayed(*arguments):
        time.sleep(0.3)
        return step(*arguments)

    monkeypatch.setattr(guarded.engine.model, "_step", delayed)
    text = http.post("/v1/chat/completions", json={**LONG, "max_tokens": 2}).text
    blocks = text.split("\n\n")
    assert ": still at work" in blocks and blocks[-2] == "data: [DONE]"
    assert all(block.startswith(("data: ", ": still")) for block in blocks if block)


def test_a_reader_who_does_not_read_holds_nobody_up(guarded, http):
    connections = [raw(guarded, json.dumps(LONG).encode()) for _ in range(4)]
    assert http.post("/v1/chat/completions", json=HI).status_code == 200
    for connection in connections:
        connection.close()
    wait_until_idle(guarded)


def test_too_many_are_told_to_come_back(folder):
    options = ServerOptions(batch_size=1, max_waiting=1, max_tokens=200, timeout_s=20)
    with running(lambda: Served(load_engine(folder), "tiny", batch_size=1, max_waiting=1), options) as server:
        step = server.engine.model._step

        def delayed(*arguments):
            time.sleep(0.01)
            return step(*arguments)

        server.engine.model._step = delayed
        with server.client() as http:
            threads = [
                threading.Thread(target=lambda: http.post("/v1/chat/completions", json={**HI, "max_tokens": 100}))
                for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            while server.served.running._open < 2:
                time.sleep(0.001)
            found = http.post("/v1/chat/completions", json=HI)
            assert found.status_code == 429 and int(found.headers["retry-after"]) > 0
            assert found.json()["error"]["type"] == "rate_limit_error"
            for thread in threads:
                thread.join()
            assert http.post("/v1/chat/completions", json=HI).status_code == 200


def test_an_answer_has_a_time_limit(folder):
    with running(lambda: Served(load_engine(folder), "tiny"), ServerOptions(timeout_s=0.3)) as server:
        step = server.engine.model._step

        def delayed(*arguments):
            time.sleep(0.02)
            return step(*arguments)

        server.engine.model._step = delayed
        asked = {**HI, "max_tokens": 400}
        with server.client() as http:
            found = http.post("/v1/chat/completions", json=asked)
            assert found.status_code == 504 and found.json()["error"]["type"] == "timeout_error"
            streamed = http.post("/v1/chat/completions", json={**asked, "stream": True}).text
            assert "the answer took longer than 0.3 s" in streamed and streamed.endswith("data: [DONE]\n\n")
            wait_until_idle(server)


def test_nothing_is_loaded_without_a_folder(http):
    found = http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "x"})
    assert found.status_code == 403 and "start with --folder" in found.json()["error"]["message"]


def test_health_while_loading(folder):
    go = threading.Event()

    def load() -> Served:
        go.wait(20)
        return Served(load_engine(folder), "tiny")

    import uvicorn

    from edgecal.server import create_app

    app = create_app(load)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", ws="none"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as http:
            assert http.get("/health").status_code == 503
            found = http.post("/v1/chat/completions", json=HI)
            assert found.status_code == 503 and found.headers["retry-after"]
            go.set()
            while http.get("/health").status_code != 200:
                time.sleep(0.005)
            assert http.post("/v1/chat/completions", json=HI).status_code == 200
        server.should_exit = True
        thread.join(60)


@pytest.mark.parametrize(
    "options", [{"token": "short"}, {"token": "ünïcödé token"}, {"max_body": 0}, {"timeout_s": -1}, {"max_tokens": 0}]
)
def test_impossible_options(options):
    with pytest.raises(OptionError):
        ServerOptions(**options)

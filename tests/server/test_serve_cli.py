"""`edgecal serve` as a process: what it says, how it ends, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.tiny import write_tiny_adapter, write_tiny_calibration

HI = {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 4}


def command(folder: Path, *arguments: str) -> list[str]:
    adapters = [f"--adapter={name}={folder / 'adapters' / name}" for name in ("summarize", "professional")]
    model = [str(folder / "model"), "--weights", "int8", *adapters]
    return [sys.executable, "-c", "from edgecal.cli import main; main()", "serve", *model, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p)}


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen, dict]]:
    """The process, once it is ready, and what it said of itself."""
    process = subprocess.Popen(
        command(folder, "--port", "0", "--json", *arguments),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line, process.communicate(timeout=60)[1]
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_where_it_is(folder):
    with serving(folder, "--calibration", f"pp={folder / 'adapters/lcpp.safetensors'}") as (process, said):
        assert said["url"].startswith("http://127.0.0.1:") and said["token"] is None
        assert said["models"] == ["model", "summarize", "professional", "pp"]
        found = httpx.post(f"{said['url']}v1/chat/completions", json={**HI, "model": "pp"}, timeout=300)
        assert found.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_the_network_needs_a_token(folder):
    with serving(folder, "--host", "0.0.0.0") as (_, said):
        assert len(said["token"]) >= 16 and "0.0.0.0" not in said["url"]
        url = f"http://127.0.0.1:{said['url'].rstrip('/').rpartition(':')[2]}/v1/models"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": f"Bearer {said['token']}"}).status_code == 200


def test_a_person_is_told_all_of_it(folder, tmp_path):
    others = {name: write_tiny_adapter(tmp_path / name, folder / "model", seed=8 + i) for i, name in enumerate("ab")}
    lost = write_tiny_calibration(tmp_path / "lost.safetensors", folder / "model", others)
    with subprocess.Popen(
        command(folder, "--port", "0", "--host", "0.0.0.0", "--calibration", str(lost)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(),
    ) as process:  # fmt: skip
        said = b""
        while b"Ctrl-C" not in said:
            said += process.stdout.read1()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    text = said.decode()
    assert "model is served at http://" in text and "#token=" in text and "Authorization: Bearer " in text
    assert "the calibration lost is of no use: it was trained for a, b, and the adapters here are summarize" in text
    assert "▀" in text or "█" in text, "the QR code"


@pytest.mark.parametrize(("grace", "ends"), [("30", '"finish_reason": "length"'), ("0", "the engine was stopped")])
def test_a_signal_lets_answers_finish_within_a_bound(folder, grace, ends):
    with serving(folder, "--grace", grace, "--max-tokens", "450") as (process, said):
        seen: list[str] = []
        begun = threading.Event()

        def read() -> None:
            body = {**HI, "max_tokens": 450, "stream": True}
            with httpx.stream("POST", f"{said['url']}v1/chat/completions", json=body, timeout=300) as found:
                for line in found.iter_lines():
                    seen.append(line)
                    begun.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert begun.wait(30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        thread.join(60)
        text = "\n".join(seen)
        assert ends in text or '"finish_reason": "stop"' in text or '"finish_reason": "length"' in text
        assert text.rstrip().endswith("[DONE]")


def test_killed_and_started_again(folder):
    for _ in range(2):
        with serving(folder) as (process, said):
            assert httpx.post(f"{said['url']}v1/chat/completions", json=HI, timeout=300).status_code == 200
            process.kill()
            process.wait(10)
            with pytest.raises(httpx.TransportError):
                httpx.get(said["url"])


def refused(folder: Path, *arguments: str, code: int = 1) -> str:
    done = subprocess.run(
        command(folder, *arguments), capture_output=True, text=True, env=environment(), timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_refusals(folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}" in refused(folder, "--port", port)
    assert "at least 8 characters" in refused(folder, "--token", "short")
    assert "there is no folder" in refused(folder, "--folder", str(tmp_path / "nothing"))
    assert "no such file" in refused(folder, "--calibration", str(tmp_path / "nothing.safetensors"))
    assert "two adapters are called 'summarize'" in refused(folder, "--adapter", str(folder / "adapters/summarize"))
    assert "cannot listen on nowhere.invalid" in refused(folder, "--host", "nowhere.invalid")
    (tmp_path / "recipe.yaml").write_text("method: linear\nadapters: [nobody, summarize]\n")
    assert "give --adapter nobody=PATH" in refused(folder, "--port", "0", "--recipe", str(tmp_path / "recipe.yaml"))

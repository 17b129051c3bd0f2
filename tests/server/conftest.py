"""A real server in a thread, with a tiny model that has adapters and a calibration."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from edgecal import Engine, Recipe, Step
from edgecal.server import Served, ServerOptions, create_app
from tests.tiny import write_tiny_adapter, write_tiny_calibration, write_tiny_hf

ADAPTERS = ("summarize", "professional", "french", "english")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("server")
    write_tiny_hf(root / "model", max_position_embeddings=512)
    for seed, name in enumerate((*ADAPTERS, "more"), 1):
        write_tiny_adapter(root / "adapters" / name, root / "model", seed=seed)
    pair = {name: root / "adapters" / name for name in ADAPTERS[:2]}
    write_tiny_calibration(root / "adapters" / "lcpp.safetensors", root / "model", pair)
    (root / "outside").mkdir()
    (root / "adapters" / "link").symlink_to(root / "outside")
    return root


def load_engine(folder: Path) -> Engine:
    adapters = {name: folder / "adapters" / name for name in ADAPTERS}
    return Engine.load(folder / "model", weights="int8", adapters=adapters, backend="numba")


STEPS = Recipe("multi_step", steps=(Step("summarize", "Shorten"), Step("professional", "Polish")))


@dataclass
class Running:
    """`engine` is the one that serves: its settings and numbers, not for forward passes while it does."""

    url: str
    served: Served
    context: Any

    @property
    def engine(self) -> Engine:
        return self.served.engine

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, **options)


@contextmanager
def running(load: Callable[[], Served], options: ServerOptions | None = None) -> Iterator[Running]:
    app = create_app(load, options)
    # Uvicorn's logging would end all handlers, and absl's (a part of rouge-score) closes what pytest captures with
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=2, ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not app.context.ready:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.005)
            yield Running(url, app.context.served, app.context)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    def load() -> Served:
        return Served(
            load_engine(folder),
            "tiny",
            recipes={"both": Recipe("linear", ADAPTERS[:2]), "steps": STEPS},
            calibrations={"lcpp": str(folder / "adapters" / "lcpp.safetensors")},
            folder=folder / "adapters",
        )

    with running(load, ServerOptions(folder=folder / "adapters", max_tokens=200)) as found:
        yield found


@pytest.fixture(scope="module")
def alone(folder: Path) -> Engine:
    """The same engine that nobody serves: what answers must be equal to."""
    return load_engine(folder)

"""`edgecal serve`: the server and the page, on this machine or in the network."""

from __future__ import annotations

import ipaddress
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import EdgecalError, OptionError, RecipeError
from ._completion import adapters as adapter_names
from ._completion import calibrations as calibration_names
from ._completion import complete_paths
from ._model_argument import MODEL, NAMED
from ._names import calibration_path, model_named
from ._output import echo_json, note, tell
from ._progress import progress
from .options import (
    ModelOptions,
    answering_options,
    check_places,
    compile_kernels,
    note_stand_ins,
    open_model,
    recipe_of_file,
    split_adapter,
)

if TYPE_CHECKING:
    from types import FrameType

    from ..adapters.recipe import Recipe
    from ..server import Served, ServerOptions

_INSTALL = "the server needs the extra app: pip install 'edgecal[app]'"
_DEMO = {"summarize": "demo:summarize", "professional": "demo:professional", "french": "demo:translate_fr"}


@click.command("serve")
@MODEL
@NAMED
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[NAME=]PATH",
    shell_complete=complete_paths(adapter_names, named=True),
    help="Repeat for several. The page knows summarize, reply, tones and languages by their names (and english).",
)
@click.option(
    "--calibration",
    "calibrations",
    multiple=True,
    metavar="[NAME=]FILE",
    shell_complete=complete_paths(calibration_names, named=True),
    help="A calibration of these adapters, or demo:NAME; repeat for several.",
)
@click.option(
    "--recipe", "recipes", multiple=True, metavar="[NAME=]FILE", help="A recipe file, served under its name; repeat."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is the network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--token",
    "--api-key",
    envvar="EDGECAL_TOKEN",
    show_envvar=True,
    help="Asked of every request. In the network one is made and printed unless given.",
)
@click.option("--host-name", "hosts", multiple=True, help="A further name that the server goes by; repeat.")
@click.option("--cors", "origins", multiple=True, metavar="ORIGIN", help="Whose pages may call it; repeat.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Adapters and calibrations may be loaded from it at run time."
)
@click.option(
    "--batch",
    "--parallel",
    "-np",
    "batch",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Answers at a time.",
)
@click.option("--queue", type=click.IntRange(0), default=64, show_default=True, help="Requests that may wait.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Of one answer.")
@click.option("--timeout", type=click.FloatRange(0.1), default=600.0, show_default=True, help="Seconds of one request.")
@click.option("--max-body", type=click.IntRange(1024), default=1 << 20, show_default=True, help="Bytes of one request.")
@click.option("--grace", type=click.FloatRange(0), default=10.0, show_default=True, help="Seconds to end in.")
@answering_options
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but refusals.")
@click.option("--json", "as_json", is_flag=True, help="Address and token as one JSON object on stdout.")
def command(
    model: str | None,
    named: str | None,
    adapters: tuple[str, ...],
    calibrations: tuple[str, ...],
    recipes: tuple[str, ...],
    host: str,
    port: int,
    token: str | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    folder: Path | None,
    batch: int,
    queue: int,
    max_tokens: int,
    timeout: float,
    max_body: int,
    grace: float,
    loading: ModelOptions,
    quiet: bool,
    as_json: bool,
) -> None:
    """Serve MODEL (demo unless given) to clients of OpenAI and of llama.cpp's server, and as a page for the browser.

    Adapters, recipes and calibrations are names there: a request chooses among them, or composes its own.
    docs/server.md has every route and field.
    """
    if model is not None and named is not None:
        raise click.UsageError(f"the model is given twice: {model!r} and {named!r} (-m)")
    model = model or named or "demo"
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401

        from ..server import ServerOptions
    except ImportError as error:
        raise OptionError(f"{_INSTALL} ({error.name} is missing)") from error
    local = _is_local(host)
    if token is None and not local:
        token = secrets.token_urlsafe(16)
    options = ServerOptions(
        token=token, hosts=(*hosts, host), origins=origins, max_body=max_body, max_tokens=max_tokens,
        timeout_s=timeout, batch_size=batch, max_waiting=queue, folder=folder, grace_s=grace,
    )  # fmt: skip
    paths = dict(_once("adapter", [split_adapter(text) for text in adapters]))
    files = dict(_once("calibration", [_file(text) for text in calibrations]))
    files = {name: calibration_path(path) for name, path in files.items()}
    if model == "demo" and not (adapters or calibrations or recipes):
        from .. import demo

        paths, files = dict(_DEMO), {name: f"demo:{name}" for name in demo.CALIBRATIONS}
    composed = {name: recipe_of_file(path) for name, path in _once("recipe", [_file(text) for text in recipes])}
    for recipe in composed.values():
        for name, path in recipe.paths:
            paths.setdefault(name, path)
        check_places(recipe, paths)
    with open_model(model, loading):  # what is wrong with it is said now, and what is of the hub is fetched
        pass
    compile_kernels(loading.backend)
    note_stand_ins(loading.backend)
    with _listening(host, port) as listener:
        service = _Service(model, loading, paths, files, composed, options, listener, quiet=quiet, as_json=as_json)
        service.run()


def _once(kind: str, named: list[tuple[str, str]]) -> list[tuple[str, str]]:
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"two {kind}s are called {name!r}; name them apart with NAME=PATH")
    return named


def _file(text: str) -> tuple[str, str]:
    """(name, path) of NAME=FILE or FILE; the name defaults to the file's without its ending."""
    name, separator, path = text.partition("=")
    if separator and "/" not in name:
        return name, path
    return (text.removeprefix("demo:") if text.startswith("demo:") else Path(text).stem), text


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            message = f"cannot listen on {host}:{port}: {reason}; choose another --port (0: a free one)"
            raise OptionError(message) from error
        yield listener


class _Service:
    """A server process: loads while it listens, says where it is, ends at a signal."""

    def __init__(
        self,
        model: str,
        loading: ModelOptions,
        adapters: dict[str, str],
        calibrations: dict[str, str],
        recipes: dict[str, Recipe],
        options: ServerOptions,
        listener: socket.socket,
        *,
        quiet: bool,
        as_json: bool,
    ) -> None:
        self._model, self._loading, self._options, self._listener = model, loading, options, listener
        self._adapters, self._calibrations, self._recipes = adapters, calibrations, recipes
        self._quiet, self._as_json = quiet, as_json
        self._command = click.get_current_context()
        self._error: EdgecalError | None = None

    def run(self) -> None:
        """Until a signal comes. Raises what stood in the way of loading."""
        import uvicorn

        from ..server import create_app

        service = self

        class Server(uvicorn.Server):
            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                """As uvicorn's own, but a signal ends the process with 0 and not by the signal itself."""
                handled = (signal.SIGINT, signal.SIGTERM)
                before = {number: signal.signal(number, self.handle_exit) for number in handled}
                try:
                    yield
                finally:
                    for number, handler in before.items():
                        signal.signal(number, handler)

            def handle_exit(self, number: int, frame: FrameType | None) -> None:
                service.closing()
                super().handle_exit(number, frame)

        app = create_app(self._load, self._options, failed=self._failed, ready=self._ready)
        self._context = app.context
        config = uvicorn.Config(
            app,
            log_level="warning",
            lifespan="on",
            timeout_graceful_shutdown=int(self._options.grace_s) + 5,
            timeout_keep_alive=30,
            server_header=False,
        )
        self._server = Server(config)
        self._server.run(sockets=[self._listener])
        if self._error is not None:
            raise self._error

    def _load(self) -> Served:
        from ..engine import Engine
        from ..server import Served

        name = Path(self._model).name.removesuffix(".gguf") or self._model
        options = self._options
        with (
            self._command.scope(cleanup=False),  # this is another thread, and progress asks for the options
            model_named(self._model) as path,
            progress(f"loading {name}", unit="bytes") as report,
        ):
            engine = Engine.load(path, adapters=self._adapters, progress=report, **vars(self._loading))
            return Served(
                engine,
                name,
                recipes=self._recipes,
                calibrations=self._calibrations,
                folder=options.folder,
                batch_size=options.batch_size,
                max_waiting=options.max_waiting,
            )

    def _failed(self, error: EdgecalError) -> None:
        self._error = error
        self._server.should_exit = True

    def closing(self) -> None:
        """A signal has come: what runs has the grace to finish, then it is told that it cannot."""
        served, loop = self._context.served if self._context.ready else None, self._context.loop
        if served is not None and loop is not None:
            loop.call_soon_threadsafe(lambda: loop.create_task(served.running.close(self._options.grace_s)))

    def _ready(self, served: Served) -> None:
        """Say where it is."""
        host, port = self._listener.getsockname()[:2]
        local = _is_local(host)
        shown = host if local else _network_address() if host in ("0.0.0.0", "::") else host
        url = f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"
        token = self._options.token
        page = f"{url}#token={token}" if token else url
        if self._as_json:
            echo_json({"url": url, "token": token, "models": served.model_names})
            return
        if self._quiet:
            return
        if served.engine.note:
            note(f"{served.name}: {served.engine.note}")
        for text in served.notes:
            note(text)
        tell(f"{served.name} is served at {page}", bold=True)
        if token:
            tell(f"clients send: Authorization: Bearer {token}")
        tell(f"OpenAI's clients: base_url={url}v1, model one of {', '.join(served.model_names)}")
        if not local:
            import segno

            segno.make(page, error="m").terminal(out=sys.stdout, border=1, compact=True)
        tell("Ctrl-C ends it")


def _network_address() -> str:
    """Of this machine, as others in its network see it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()

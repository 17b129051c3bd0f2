"""The server: OpenAI's interface and llama.cpp's, adapters and compositions by name, and the app's page (extra `app`).

    from edgecal.server import Served, ServerOptions, create_app

    app = create_app(lambda: Served(engine, "demo"))      # an ASGI application, for uvicorn or another server
"""

from .app import create_app
from .context import ServerOptions
from .served import Served

__all__ = ["Served", "ServerOptions", "create_app"]

"""Start `edgecal serve demo`, ask it once over HTTP, end it: serve_once.py COMMAND... Only the standard library."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request


def main() -> None:
    command = [*sys.argv[1:], "serve", "demo", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            asked = {"model": ready["models"][0], "prompt": "The capital of France is"}
            asked |= {"max_tokens": 6, "temperature": 0}
            headers = {"Content-Type": "application/json"}
            if ready["token"]:
                headers["Authorization"] = f"Bearer {ready['token']}"
            url, body = f"{ready['url'].rstrip('/')}/v1/completions", json.dumps(asked).encode()
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=600) as answer:
                text = json.load(answer)["choices"][0]["text"]
        finally:
            server.terminate()
    if "Paris" not in text:
        raise SystemExit(f"serve_once.py: an answer with Paris was expected, found {text!r}")


if __name__ == "__main__":
    main()

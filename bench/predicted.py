"""Tokens per second that a board's memory allows, from the bytes that a token reads: predicted, not measured.

    python -m bench.predicted demo MODEL.gguf DIRECTORY ... [--weights int4] [--depth 1024]

Every weight is read once for a token (of the embedding one row, of a tied head all), and the keys and values of all
positions before it:

    tokens/s = bandwidth / (bytes of the weights + positions * bytes of a position)

The bandwidths are published ones: a Raspberry Pi 5 reads 13.8 GB/s with one thread and 10.7 with four (Arm's learning
path "llm-decode-roofline"), a Raspberry Pi 4 copies 5.5 GB/s (STREAM). On the Pi 5 of that page llama.cpp reached 11.8
of the 13.8, so some 0.86 of what stands here is what a good program gets. Nothing is loaded: the bytes are those of the
files' headers.
"""

from __future__ import annotations

import argparse
import math

from edgecal import demo
from edgecal.architecture import outer_parts
from edgecal.cache import position_bytes
from edgecal.config import ModelConfig
from edgecal.loading import weight_sizes
from edgecal_weights.opening import open_checkpoint

BOARDS = {"Pi 5, 1 thread": 13.8e9, "Pi 5, 4 threads": 10.7e9, "Pi 4": 5.5e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--weights", default="auto", help="as for edgecal generate")
    parser.add_argument("--depth", type=int, default=1024, help="positions that are read before the token")
    given = parser.parse_args()
    print(f"| model | MiB a token | {' | '.join(f'{board}, after 0 / {given.depth:,}' for board in BOARDS)} |")
    print("|---" * (2 + len(BOARDS)) + "|")
    for name in given.models:
        with open_checkpoint(demo.find(name)) as checkpoint:
            config = ModelConfig.from_dict(checkpoint.config)
            sizes = weight_sizes(checkpoint, config, given.weights, 32)
        parts = outer_parts(config)
        if "head" in parts:  # the embedding is another matrix, of which a token reads a row
            sizes.pop(f"{parts['embedding'].name}.weight")
        weights, position = sum(sizes.values()), position_bytes(config, "fp16")
        rates = (
            " / ".join(_short(bandwidth / (weights + n * position)) for n in (0, given.depth))
            for bandwidth in BOARDS.values()
        )
        print(f"| {checkpoint.path.name} | {weights / (1 << 20):.0f} | {' | '.join(rates)} |")


def _short(rate: float) -> str:
    """Two digits that count."""
    return f"{rate:.{max(0, 1 - math.floor(math.log10(rate)))}f}"


if __name__ == "__main__":
    main()

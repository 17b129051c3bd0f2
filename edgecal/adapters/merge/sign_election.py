"""TIES's second and third step: elect a sign for each entry, then average those that agree with it.

In PEFT's variant (0.21.2), followed here, the vote is of the unweighted tensors: "total" adds their values, "frequency"
their signs, and a sum of zero counts as plus. Then the weighted entries whose sign was elected are added and divided
by how many they are. mergekit votes with weighted values and divides by the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..lora import Array
from ..merge_kernels import Kernels, plain
from .options import Option
from .pruning import Trim, trim_arguments, trimmed
from .workspace import BLOCK, scratch

SIGN_METHOD = Option(
    "majority_sign_method",
    "whether values (total) or signs (frequency) are added to elect one",
    kind="choice",
    default="total",
    choices=("total", "frequency"),
)


_SIGN = np.uint32(1 << 31)


def elect_and_average(
    tensors: Sequence[Array],
    weights: Sequence[float],
    sign_method: str,
    out: Array,
    trims: Sequence[Trim] | None = None,
    kernels: Kernels = None,
) -> None:
    """Into `out`, of the tensors' shape, float32; of the tensors only what `trims` keep."""
    flat = [plain(tensor).reshape(-1) for tensor in tensors]
    total = out.reshape(-1)
    if kernels is not None:
        arguments = trim_arguments(flat, trims or [Trim(0, 0)] * len(flat))
        kernels.elect(*arguments, np.array(weights, np.float32), sign_method == "frequency", total)
        return
    for start in range(0, total.size, BLOCK):
        parts = [tensor[start : start + BLOCK] for tensor in flat]
        if trims is not None:
            parts = [trimmed(part, kept, start) for part, kept in zip(parts, trims, strict=True)]
        _elect_block(parts, weights, sign_method, total[start : start + BLOCK])


def _elect_block(parts: list[Array], weights: Sequence[float], sign_method: str, out: Array) -> None:
    vote = scratch("vote", out.shape)
    turned = scratch("turned", out.shape)
    np.add(np.sign(parts[0], out=turned) if sign_method == "frequency" else parts[0], np.float32(0), out=vote)
    for part in parts[1:]:
        vote += np.sign(part, out=turned) if sign_method == "frequency" else part
    minus = vote.view(np.uint32)  # the sign bit where minus was elected; no sum that starts at +0 ends at -0
    minus &= _SIGN
    agreeing = np.zeros(out.shape, np.uint8)
    for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        np.bitwise_xor(part.view(np.uint32), minus, out=turned.view(np.uint32))  # positive where it agrees
        agrees = turned > 0
        agreeing += agrees.view(np.uint8)
        turned *= agrees
        if i == 0:
            np.multiply(turned, np.float32(weight), out=out)
        else:
            turned *= np.float32(weight)
            out += turned
    out /= np.maximum(agreeing, 1, out=agreeing)
    signed = out.view(np.uint32)
    signed ^= minus

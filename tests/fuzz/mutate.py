"""Mutators: small changes of an input that keep enough of its structure for a reader to go on reading."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

from .target import Mutator

_WHOLE = (0, 1, 2, 3, 4, 8, 31, 64, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 1 << 20, 1 << 31, (1 << 32) - 1, (1 << 63) - 1)
_WHOLE += ((1 << 64) - 1,)
_NUMBERS: tuple[Any, ...] = (0, 1, -1, 2, 7, 1e308, -0.0, 0.1, 1 << 31, 1 << 63, 1 << 200, -(1 << 64), 10**400, 4097)
_NUMBERS += (float("nan"), float("inf"))
_TEXTS = ("", "a", "\0", "\x1b[2J", "é", "\ud800", "../..", "/dev/zero", "x" * 700, "%s{0}", "null", "1", "-1", "F32")
_TEXTS += ("model.layers.99999999999.self_attn.q_proj", "(a+)+$", "a" * 5000, "\u202e", "~nobody", "q_proj.*.*.*")


def raw(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, doubled, overwritten with numbers that are limits."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(7)
        if kind == 0 and found:
            found[at % len(found)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            number = struct.pack("<Q", rng.choice(_WHOLE))[: rng.choice((1, 2, 4, 8))]
            found[at : at + len(number)] = number
        elif kind == 2:
            del found[at : at + rng.randrange(1, 32)]
        elif kind == 3:
            found[at:at] = found[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            del found[at:]
        elif kind == 5:
            found[at:at] = rng.choice(_TEXTS).encode("utf-8", "surrogatepass")[:64]
        else:
            other = rng.randrange(len(found) + 1)
            found[at : at + 16] = found[other : other + 16]
    return bytes(found)


def json_text(data: bytes, rng: random.Random) -> bytes:
    """One value of the JSON in it replaced, removed, doubled, nested or put elsewhere."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return raw(data, rng)
    if rng.random() < 0.1:
        return raw(data, rng)
    try:
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = _changed(value, rng)
        return _written(value)
    except RecursionError:  # nested often enough
        return b"[" * 2000 + data + b"]" * 2000


def _written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside; of a long list its beginning."""
    found, todo = [], [value]
    while todo:
        container = todo.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in list(keys)[:50]:
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                todo.append(container[key])
    return found


def _changed(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, (dict, list)) or not value:
        return _new(value, [], rng)
    places = _places(value)
    container, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice((*_TEXTS, *map(str, container)))] = container.pop(key)
    elif kind == 2 and isinstance(container, dict):
        container[rng.choice(_TEXTS) or "more"] = container[key]
    elif kind == 2:
        container.insert(rng.randrange(len(container) + 1), container[key])
    else:
        container[key] = _new(container[key], places, rng)
    return value


def _new(old: Any, places: Sequence[tuple[Any, Any]], rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(_NUMBERS)
    if kind == 1:
        return rng.choice(_TEXTS)
    if kind == 2:
        return rng.choice((None, True, False, [], {}))
    if kind == 3:
        for _ in range(rng.choice((1, 3, 90, 150, 500))):
            old = [old]
        return old
    if kind == 4 and isinstance(old, str):
        return raw(old.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")
    if kind == 5 and type(old) is int:
        return old * rng.choice((-1, 2, 3, 1 << 32)) + rng.choice((-1, 0, 1))
    if kind == 5 and isinstance(old, float):
        return old * rng.choice((-1.0, 0.5, 1e9)) + rng.choice((-1.0, 0.0, 1.0))
    if kind == 6 and places:
        container, key = rng.choice(places)
        return json.loads(json.dumps(container[key]))
    if isinstance(old, list):
        return old * rng.choice((0, 2, 40))
    return {"a": old, "b": [old, rng.choice(_TEXTS)]}


def json_in_texts(data: bytes, rng: random.Random) -> bytes:
    """`json_text`, also inside texts that hold JSON themselves, as metadata do."""
    try:
        value = json.loads(data)
        inside = [(c, k) for c, k in _places(value) if isinstance(c[k], str) and c[k][:1] in ("{", "[")]
    except (ValueError, TypeError, RecursionError):
        return raw(data, rng)
    if not inside or rng.random() < 0.5:
        return json_text(data, rng)
    container, key = rng.choice(inside)
    container[key] = json_text(container[key].encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")
    return _written(value)


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header as JSON with its length kept right, or the numbers behind it."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8 or rng.random() < 0.2:
        return raw(data, rng)
    header, body = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.15:
        body = raw(body, rng)
    else:
        header = json_in_texts(header, rng)
        header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def lines(data: bytes, rng: random.Random) -> bytes:
    """One line as JSON; or lines removed, doubled, joined."""
    found = data.split(b"\n")
    at = rng.randrange(len(found))
    kind = rng.randrange(6)
    if kind == 0:
        del found[at]
    elif kind == 1:
        found.insert(at, rng.choice(found))
    elif kind == 2:
        return raw(data, rng)
    else:
        found[at] = json_text(found[at], rng)
    return b"\n".join(found)


def behind(markers: Sequence[bytes]) -> Mutator:
    """Four or eight bytes shortly behind one of the markers become a number that is a limit; else `raw`."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        places = [at + len(m) for m in markers if (at := data.find(m)) >= 0]
        if not places or rng.random() < 0.4:
            return raw(data, rng)
        at = rng.choice(places) + rng.choice((0, 0, 4, 8, 12, 16, 20, 24))
        number = struct.pack("<Q", rng.choice((*_WHOLE, *range(16))))[: rng.choice((4, 8))]
        return data[:at] + number + data[at + len(number) :]

    return mutate


def words(vocabulary: Sequence[str]) -> Mutator:
    """Words of a language put in, doubled or exchanged; now and then `raw`."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.15:
            return raw(data, rng)
        text = data.decode("utf-8", "replace")
        for _ in range(rng.choice((1, 2, 3, 6))):
            at, size = rng.randrange(len(text) + 1), rng.choice((0, 0, 1, 5, 20))
            other = rng.randrange(len(text) + 1)
            new = rng.choice(vocabulary) if rng.random() < 0.7 else text[other : other + rng.choice((5, 20, 60))]
            text = text[:at] + new + text[at + size :]
        return text[:100_000].encode("utf-8", "replace")

    return mutate

"""GPT-2's spelling of bytes as characters, in which byte-level vocabularies are written."""

from __future__ import annotations

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# Printable Latin-1 stands for itself, the rest follows from U+0100 on.
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
_CHARACTERS = {byte: character for character, byte in BYTES.items()}


def spell(text: str) -> str:
    """The UTF-8 bytes of a text in the alphabet."""
    return text.encode().decode("latin-1").translate(_CHARACTERS)


def read(token: str) -> bytes:
    """The bytes of a token; of one that is written in other characters (an added one) those of UTF-8."""
    try:
        return bytes([BYTES[character] for character in token])
    except KeyError:
        return token.encode()

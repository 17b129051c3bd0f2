"""Whole files: bounded on the way in, complete or not at all on the way out.

Every file that edgecal writes grows under a hidden name in the folder of its target and is renamed when it is complete,
so that a full disk or Ctrl-C leaves the old file or the new one, never half of one. What a killed process leaves under
such a name is removed by the next one that writes to the same target: who is at work holds a lock on it, which the
system takes away with the process. Files get the permissions that the umask gives, whichever library wrote them
(safetensors alone would keep them from other users).
What stands at the target and is no file (/dev/stdout, a pipe) is written to as it is: a rename would replace it.

Every text that edgecal reads has a limit, because it may come from anybody, and has to be UTF-8. Large binary files
are not read here but by position: see binary_file.
"""

from __future__ import annotations

import ctypes
import difflib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from edgecal_kernels.errors import EdgecalError

from .errors import FileFormatError, ModelNotFoundError, StorageError

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and what is being worked on. May raise to stop the work."""

_CHUNK = 1 << 20
_YOUNG_S = 60.0
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and the flag of Linux
_LISTED = 3  # names in one message
_DEEPEST = 100  # JSON; a model's tokenizer.json has 8
_DEEP = object()


def expand(path: str | Path, error: type[EdgecalError]) -> Path:
    """`path` with ~ replaced; `error` where nobody has such a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as problem:
        raise error(f"{path} cannot be opened: {problem}") from problem


def reason(error: BaseException) -> str:
    """What the operating system says, without the path that it repeats."""
    return getattr(error, "strerror", None) or str(error)


# ----------------------------------------------------------------------------------------------------------- writing


@contextmanager
def atomic_write(path: str | Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Gives the path of an empty file to fill; `path` becomes that file in one step when the block ends.

    `mode` is cut by the umask. Raises StorageError naming `path` for whatever the operating system objects to; after
    any exception `path` is what it was.
    """
    try:
        target = Path(path).expanduser()
        partial, granted = target, mode
        if target.is_file() or not target.exists():
            target = Path(os.path.realpath(target))  # through a link, as an editor writes
            _remove_leftovers(target)
            partial = _hidden_name(target)
            granted = _create(partial, mode)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, or no name at all; a home that is none
        raise _unwritable(path, error) from error
    try:
        # Not of a pipe or a device: the lock's descriptor would be a reader, and take what is written
        with _at_work(partial) if partial != target else nullcontext():
            yield partial
        if partial != target:
            if stat.S_IMODE(partial.stat().st_mode) != granted:
                partial.chmod(granted)
            os.replace(partial, target)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if partial != target:
            with suppress(OSError):
                partial.unlink()


def _unwritable(path: str | Path, error: Exception) -> StorageError:
    told = reason(error)
    if isinstance(error, FileNotFoundError) and not (folder := Path(path).expanduser().parent).is_dir():
        told = f"there is no folder {folder}"
    return StorageError(f"{path} could not be written: {told}")


def _create(path: Path, mode: int) -> int:
    """Make an empty file; returns the permissions that it got."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8, complete or not at all; StorageError when it cannot be written."""
    try:
        content = text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise StorageError(f"{path} could not be written: {error}") from error
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> None:
    """`write_text` of plain JSON values, for people and programs: other letters than ASCII as they are."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


@contextmanager
def staging_directory(target: Path) -> Iterator[Path]:
    """Gives an empty hidden directory beside `target`, to fill and rename; what is left of it at the end is removed.

    Makes the folder around `target`. OSErrors are the caller's, who knows what was to become of it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    partial = _hidden_name(target)
    partial.mkdir()
    try:
        with _at_work(partial):
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _hidden_name(target: Path) -> Path:
    """A name of its own for each writer: two processes, or threads, may write one file at the same time."""
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.partial")


@contextmanager
def _at_work(partial: Path) -> Iterator[None]:
    """A lock on it says that its writer is alive; where there are no locks, nothing of others is ever removed."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """What writers to `target` have left who are not there any more."""
    pattern = re.compile(rf"\.{re.escape(target.name[:40])}\.[0-9a-f]{{8}}\.partial")
    with suppress(OSError):
        for entry in os.scandir(target.parent):
            if pattern.fullmatch(entry.name) and _is_left(Path(entry.path)):
                shutil.rmtree(entry.path, ignore_errors=True)
                with suppress(OSError):
                    os.unlink(entry.path)


def _is_left(partial: Path) -> bool:
    with suppress(OSError):
        if time.time() - partial.lstat().st_mtime < _YOUNG_S:  # perhaps not locked yet
            return False
        descriptor = os.open(partial, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        finally:
            os.close(descriptor)
    return False


def exchange(one: Path, other: Path) -> bool:
    """Give two files or folders each other's name in one step; False where the system cannot do that, and for links."""
    if one.is_symlink() or other.is_symlink():
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done: int = renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


# ----------------------------------------------------------------------------------------------------------- reading


def read_bytes(
    path: str | Path, limit: int, *, error: type[EdgecalError] | None = None, pipe: bool = False
) -> bytes:
    """The whole file, of at most `limit` bytes.

    Raises `error`, by default ModelNotFoundError when there is no such file and FileFormatError for everything else.
    `pipe` allows what is no regular file, such as the shell's `<(command)`: only for files that a person named, because
    opening a pipe waits for somebody to write.
    """
    content = bytearray()
    try:
        with open(Path(path).expanduser(), "rb", opener=None if pipe else _open_at_once) as file:
            status = os.fstat(file.fileno())
            if not (pipe or stat.S_ISREG(status.st_mode)):
                raise OSError(errno.EINVAL, "it is not a regular file")
            size = status.st_size
            while size <= limit and len(content) <= limit and (chunk := file.read(_CHUNK)):
                content += chunk
    except (OSError, ValueError, RuntimeError) as problem:  # a NUL in the name; a home that is none
        kind = ModelNotFoundError if isinstance(problem, FileNotFoundError) else FileFormatError
        raise (error or kind)(f"{path} cannot be read: {reason(problem)}") from problem
    if max(size, len(content)) > limit:
        raise (error or FileFormatError)(f"{path} is larger than {_size(limit)}, which no file of its kind is")
    return bytes(content)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(path: str | Path, limit: int, *, error: type[EdgecalError] | None = None, pipe: bool = False) -> str:
    """The file as UTF-8 text, without a byte order mark; arguments and errors as for `read_bytes`."""
    content = read_bytes(path, limit, error=error, pipe=pipe)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise (error or FileFormatError)(f"{path} is not UTF-8 text: {problem}") from problem


def read_json(
    path: str | Path, limit: int, *, error: type[EdgecalError] | None = None, unique: bool = True
) -> Any:
    """The JSON value in a file; arguments and errors as for `read_bytes`, `unique` as for `parse_json`."""
    text = read_text(path, limit, error=error)
    try:
        return parse_json(text, unique=unique)
    except ValueError as problem:
        raise (error or FileFormatError)(f"{path} is not valid JSON: {problem}") from problem


def read_object(
    path: str | Path, limit: int, *, error: type[EdgecalError] | None = None, unique: bool = True
) -> dict[str, Any]:
    """As `read_json`, and the value must be an object."""
    value = read_json(path, limit, error=error, unique=unique)
    if not isinstance(value, dict):
        raise (error or FileFormatError)(f"{path} holds {kind_of(value)}, expected an object")
    return value


def kind_of(value: Any) -> str:
    """What a value out of JSON or YAML is, in their words and not Python's, with its article: for messages."""
    kinds = {type(None): "nothing (null)", bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    return kinds.get(type(value)) or ("a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def parse_json(text: str | bytes, *, unique: bool = True) -> Any:
    """ValueError for what is no JSON, is nested too deep, or (unless `unique` is False) has a key twice.

    What comes back can be walked, printed and written by functions that call themselves.
    """
    try:
        value = json.loads(text, object_pairs_hook=unique_keys if unique else None)
    except RecursionError:
        value = _DEEP
    if value is _DEEP or _deeper_than(value, _DEEPEST):
        raise ValueError(f"it is nested too deep: more than {_DEEPEST} levels")
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    """Whether lists and objects lie more than `limit` deep in one another."""
    level = [value]
    for _ in range(limit):
        inner = (c.values() if isinstance(c, dict) else c for c in level if isinstance(c, (dict, list)))
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can be: no bool, nothing infinite, no integer of 400 digits."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook`: one reader takes the last of two equal keys, another the first; neither is right."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} occurs twice")
        result[key] = value
    return result


def file_sha256(path: str | Path) -> str:
    """Of a file of any size, as lower-case hex; FileFormatError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with expand(path, FileFormatError).open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {reason(error)}") from error
    return digest.hexdigest()


def _size(limit: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if limit >> shift:
            return f"{limit >> shift} {unit}"
    return f"{limit} bytes"


# ----------------------------------------------------------------------------------------------- paths that are missing


def path_hint(path: Path) -> str:
    """To be put behind "there is no such path": " (did you mean 'models/llama-3'?)", or where the path ends, or the few
    names that there are; "" where nothing helps."""
    missing = wanted = Path(os.path.abspath(path))
    while not os.path.isdir(folder := missing.parent):
        missing = folder
    if missing != wanted:
        return f" (there is no {missing})"
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError:
        return ""
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wanted.name.lower(), by_lower, n=_LISTED, cutoff=0.6)
    if close:
        return f" (did you mean {' or '.join(repr(str(path.with_name(by_lower[name]))) for name in close)}?)"
    if 0 < len(names) <= _LISTED and len(path.parts) > 1:
        return f" ({path.parent} has {', '.join(names)})"
    return ""

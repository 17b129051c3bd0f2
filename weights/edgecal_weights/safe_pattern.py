"""Regular expressions out of untrusted files, matched in bounded time.

PEFT lets an adapter_config.json choose its modules with regular expressions, and hands them to `re`, where
twenty characters such as "(a+)+b" can keep a processor busy for years. Forbidding "dangerous looking"
patterns would also forbid what real trainers write (four ".*?" in a row, lookaheads), so the pattern is
matched differently instead: Python's own parser gives the syntax tree (the syntax therefore means what it
means in PEFT), and the tree is followed for all positions of the text at once, a set of positions being the
bits of one integer. No step looks back, and every step costs one unit of a budget that all matches of one
file share.

Greedy, lazy: the same, since only "does it match" is asked. Back-references, lookbehind, atomic groups and
inline flags are refused by name.
"""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

from .errors import AdapterError

_LONGEST_PATTERN = 4096
_STEPS = 2_000_000  # about one second
_PLAIN = re.compile(r"(?:[\w.^$-]|\\\.)*")
_UNSERVED = {
    "GROUPREF": "a back-reference",
    "GROUPREF_EXISTS": "a conditional group",
    "ATOMIC_GROUP": "an atomic group",
    "POSSESSIVE_REPEAT": "a possessive quantifier",
}
_parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")


class PatternBudget:
    """Steps that are left for one file. Share one between all its patterns."""

    def __init__(self, steps: int = _STEPS) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise _TooCostly


class _TooCostly(Exception):
    pass


class _Unserved(Exception):
    pass


class SafePattern:
    r"""One pattern: `matches(name)` answers in bounded time.

    It means `re.fullmatch(pattern, name)`, or for a `suffix` pattern PEFT's rule for the keys of rank_pattern
    and alpha_pattern, `re.match(rf"(.*\.)?({pattern})$", name)`.

    `where` names file and key in errors. Raises AdapterError for a pattern that is too long, malformed or
    uses an unserved construct, and (from `matches`) when the file's budget is spent.
    """

    def __init__(self, pattern: str, where: str, budget: PatternBudget, *, suffix: bool = False) -> None:
        self._where, self._budget, self._text, self._suffix = where, budget, pattern, suffix
        if len(pattern) > _LONGEST_PATTERN:
            raise AdapterError(
                f"{where}: a pattern of {len(pattern)} characters, at most {_LONGEST_PATTERN} are accepted"
            )
        whole = rf"(.*\.)?({pattern})$" if suffix else pattern
        # Without quantifiers of its own a pattern cannot backtrack for long, and `re` is quicker.
        self._plain = re.compile(whole) if _PLAIN.fullmatch(pattern) else None
        if self._plain is not None:
            return
        try:
            tree = _parser.parse(whole)
        except (re.error, OverflowError, RecursionError, ValueError) as error:
            raise AdapterError(f"{where}: {_shorten(pattern)} is not a regular expression: {error}") from error
        if tree.state.flags & ~re.UNICODE.value:
            raise AdapterError(f"{where}: {_shorten(pattern)} uses inline flags, which are not supported")
        self._tree = tree

    def matches(self, name: str) -> bool:
        if self._plain is not None:
            return self._plain.fullmatch(name) is not None
        try:
            reached = _Text(name, self._budget).follow(self._tree, 1)
            return bool(reached if self._suffix else reached >> len(name))
        except _Unserved as error:
            raise AdapterError(f"{self._where}: {_shorten(self._text)} uses {error}, which is not supported") from None
        except (_TooCostly, RecursionError):
            raise AdapterError(
                f"{self._where}: {_shorten(self._text)} takes too long to match; list the modules by name instead"
            ) from None


class _Text:
    """One text. A set of positions 0..n is an int whose bit i says that position i is reached."""

    def __init__(self, text: str, budget: PatternBudget) -> None:
        self.text, self.budget = text, budget
        self.everywhere = (1 << (len(text) + 1)) - 1
        self.masks: dict[str, int] = {}
        for i, character in enumerate(text):
            self.masks[character] = self.masks.get(character, 0) | 1 << i

    def follow(self, sequence: Any, at: int) -> int:
        """The positions reached when the sequence is matched from each position of `at`."""
        self.budget.spend(1)
        for operation, argument in sequence:
            if not at:
                break
            self.budget.spend(1)
            at = self._step(operation.name, argument, at)
        return at

    def _step(self, operation: str, argument: Any, at: int) -> int:
        if operation == "LITERAL":
            return (at & self.masks.get(chr(argument), 0)) << 1
        if operation in ("ANY", "NOT_LITERAL", "IN"):
            return (at & self._characters(operation, argument)) << 1
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, body = argument
            return self._repeat(int(low), int(high), body, at)
        if operation == "SUBPATTERN":
            _group, added_flags, removed_flags, body = argument
            if added_flags or removed_flags:
                raise _Unserved("inline flags")
            return self.follow(body, at)
        if operation == "BRANCH":
            reached = 0
            for branch in argument[1]:
                reached |= self.follow(branch, at)
            return reached
        if operation == "AT":
            return at & self._anchor(argument.name)
        if operation in ("ASSERT", "ASSERT_NOT"):
            direction, body = argument
            return self._look_ahead(direction, body, at, operation == "ASSERT")
        raise _Unserved(_UNSERVED.get(operation, operation))

    def _repeat(self, low: int, high: int, body: Any, at: int) -> int:
        for _ in range(low):
            at = self.follow(body, at)
            if not at:
                return 0
        reached = new = at
        count = low
        while new and count < high:
            new = self.follow(body, new) & ~reached
            reached |= new
            count += 1
        return reached

    def _look_ahead(self, direction: int, body: Any, at: int, wanted: bool) -> int:
        if direction < 0:
            raise _Unserved("a lookbehind")
        kept = 0
        for i in range(at.bit_length()):
            bit = 1 << i
            if at & bit and (self.follow(body, bit) != 0) == wanted:
                kept |= bit
        return kept

    def _characters(self, operation: str, argument: Any) -> int:
        self.budget.spend(len(self.masks))
        if operation == "ANY":
            return self._where(lambda character: character != "\n")
        if operation == "NOT_LITERAL":
            return self._where(lambda character: character != chr(argument))
        return self._where(lambda character: _in_class(argument, character))

    def _where(self, test: Any) -> int:
        mask = 0
        for character, positions in self.masks.items():
            if test(character):
                mask |= positions
        return mask

    def _anchor(self, name: str) -> int:
        end = len(self.text)
        if name in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return 1
        if name == "AT_END_STRING":
            return 1 << end
        if name == "AT_END":
            return 1 << end | (1 << end - 1 if self.text.endswith("\n") else 0)
        words = [_category("CATEGORY_WORD", character) for character in self.text]
        boundary = 0
        for i, (left, right) in enumerate(zip([False, *words], [*words, False], strict=True)):
            boundary |= (left != right) << i
        if name == "AT_BOUNDARY":
            return boundary
        if name == "AT_NON_BOUNDARY":
            return self.everywhere & ~boundary
        raise _Unserved(f"the anchor {name}")


def _in_class(items: Any, character: str) -> bool:
    found, negated = False, False
    for operation, argument in items:
        if operation.name == "NEGATE":
            negated = True
        elif operation.name == "LITERAL":
            found |= ord(character) == argument
        elif operation.name == "RANGE":
            found |= argument[0] <= ord(character) <= argument[1]
        else:
            found |= _category(argument.name, character)
    return found != negated


def _category(name: str, character: str) -> bool:
    positive = name.replace("_NOT_", "_")
    if positive == "CATEGORY_DIGIT":
        found = character.isdecimal()
    elif positive == "CATEGORY_SPACE":
        found = character.isspace()
    else:
        found = character == "_" or character.isalnum()
    return found != ("_NOT_" in name)


def _shorten(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")

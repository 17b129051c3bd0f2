"""Loops are noticed; lists, tables and code that repeat themselves on purpose are not.

The loops are what SmolLM2-135M-Instruct said greedily, its repeated part written once.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecal.decoding.repetition import MAX_PERIOD, RepetitionDetector
from tests.texts import TEXTS, UNSEEN


def found_at(text: str, size: int = 4) -> int | None:
    """Characters until the loop is noticed, when the text comes in pieces of `size`; None if it never is."""
    detector = RepetitionDetector()
    for end in range(size, len(text) + size, size):
        if detector.push(text[end - size : end]):
            assert detector.repeated is not None
            return min(end, len(text))
    assert detector.repeated is None
    return None


# what came before, what was repeated until the tokens were used up, how often at most before it is noticed
LOOPS = {
    "sentence": (
        "Oh, I'm so glad you're here. I've been working on a song about love, and",
        " I'm so glad you're here. I've been trying to write a song about love, but",
        7,
    ),
    "short sentence": (
        "I'm a chatbot designed to assist and provide information. I'm not a doctor.",
        " I'm not a chatbot designed to assist.",
        10,
    ),
    "sentence with commas": (
        "There was a time when dragons were mythical creatures with scales and feathers.",
        " They were often depicted as dragons with wings and horns, with the image of a dragon with a horn on its "
        "forehead.",
        6,
    ),
    "paragraph": (
        "4. **Read a Book in Your Laptop**: This is a great way to learn.\n\n",
        'This is a quote from the book "The Immortal Life of Babbage" by Ada Lovelace.\n\n',
        7,
    ),
    "stanza": (
        "In the depths of the blue,\nA world of endless wonder,\n\n",
        "The sea is a place of endless joy,\nA place where the soul can be lost,\nA place where the soul can be lost,\n"
        "A place where the soul can be lost.\n\nThe sea is a place of endless sorrow,\nA place where the soul can be "
        "lost,\nA place where the soul can be lost.\n\n",
        5,
    ),
    "numbered list": ("1. Dog\n2. Cat\n3. Bird\n", "{}. Fish\n", 57),
    "numbered steps": ("Here is how.\n", "Step {}: Mix the flour and the sugar in a large bowl.\n", 24),
    "word": ("I love you", " very", 54),
    "letter": ("N", "o", 260),
    "German": ("Sehr geehrte Damen und Herren,\n", "ich freue mich auf Ihre Antwort.\n", 11),
    "Chinese": ("好的。", "我很高兴能帮助你。", 31),
    "Hindi": ("नमस्ते। ", "मैं आपकी सहायता करूँगा। ", 14),
    "invented turns": ("I see.\n", "User: What is your name?\nAssistant: My name is Ann.\n", 8),
    "newlines": ("Done.", "\n", 520),
    "spaces": ("Done.", " ", 520),
    "rows of a table, without end": ("| Planet | Size |\n| --- | --- |\n", "| Mars | 2 |\n| Venus | 1 |\n", 75),
    "zeros, without end": ("[", "0, ", 520),
    "closing tags, without end": ("<div>", "</div>", 310),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_noticed(name: str) -> None:
    before, unit, times = LOOPS[name]
    text = before + "".join(unit.format(4 + n) for n in range(times))
    noticed = found_at(text)
    assert noticed is not None
    assert noticed > len(before) + 3 * len(unit), "not before it has come three times"
    shorter = before + "".join(unit.format(4 + n) for n in range(2))
    assert found_at(shorter + TEXTS["english"]) is None


def test_what_is_repeated_is_told() -> None:
    detector = RepetitionDetector()
    assert not detector.push("So. ")
    assert detector.push("It is what it is. " * 30)
    assert detector.repeated is not None and detector.repeated in "It is what it is. " * 3
    assert len(detector.repeated) == len("It is what it is. ")
    assert detector.push("Something new."), "the answer has ended"
    numbers = RepetitionDetector()
    assert numbers.push("".join(f"{n}. Fish\n" for n in range(200)))
    assert sorted(numbers.repeated or "") == sorted("0. Fish\n")


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
MEANT = {
    **TEXTS,
    **UNSEEN,
    "months": "".join(f"{n}. {name}\n" for n, name in enumerate(MONTHS, 1)),
    "plan of thirty days": "".join(f"Day {n}: Walk for thirty minutes.\n" for n in range(1, 31)),
    "plan of a year": "".join(f"Week {n}: Rest\n" for n in range(1, 53)),
    "counting to 1000": ", ".join(map(str, range(1, 1001))),
    "lines of numbers": "\n".join(map(str, range(1, 1001))),
    "multiples": "".join(f"{n} x 7 = {7 * n}\n" for n in range(1, 101)),
    "ten lines to write": "I will not talk in class.\n" * 10,
    "refrain": ("Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily,\n" * 3),
    "laughing": "ha" * 40 + "!" * 60,
    "ruler": "-" * 300 + "\n" + "=" * 300,
    "table of zeros": "|" + " 0 |" * 12 + "\n" + "".join("|" + " 0 |" * 12 + "\n" for _ in range(24)),
    "empty table": "| Name | Amount | Note |\n| --- | --- | --- |\n" + "|      |        |      |\n" * 30,
    "calendar in HTML": "<table>\n" + ("<tr>" + "<td></td>" * 7 + "</tr>\n") * 6 + "</table>",
    "wide header of a table": "|" + "---|" * 60,
    "sudoku": "board = [\n" + "    [0, 0, 0, 0, 0, 0, 0, 0, 0],\n" * 9 + "]\n",
    "array of zeros": "static const int a[256] = {" + "0, " * 255 + "0};",
    "board of booleans": "[\n" + ("  [" + "false, " * 7 + "false],\n") * 8 + "]",
    "chess board": ("+---" * 8 + "+\n" + "|   " * 8 + "|\n") * 8,
    "box": "┌" + "─" * 78 + "┐\n" + ("│" + " " * 78 + "│\n") * 12 + "└" + "─" * 78 + "┘",
    "insert statements": "".join(f"INSERT INTO people VALUES ({n}, 'Ann', 'Paris');\n" for n in range(40)),
    "switch": "".join(f"        case {n}: return 1;\n" for n in range(40)),
    "unrolled loop": "    sum += *p++;\n" * 32,
    "prints": "print('hello world')\n" * 20,
    "passing methods": "".join(f"    def f{n}(self):\n        pass\n\n" for n in range(20)),
    "assembly": "    nop\n" * 64,
    "log": "".join(f"2024-05-{n:02} 12:00:00 INFO worker: task finished\n" for n in range(1, 21)),
    "indentation": "x = [\n" + " " * 300 + "1,\n" + " " * 300 + "2]",
    "repeated imports of JSON": '{"id": 1, "tags": []},\n' * 40,
    "DNA": "GATTACA" * 30,
    "base64": "A" * 200 + "==",
}


@pytest.mark.parametrize("name", MEANT)
def test_what_is_meant_is_let_through(name: str) -> None:
    assert found_at(MEANT[name]) is None
    assert found_at(f"Here you are:\n\n{MEANT[name]}\n\nThat is all.") is None


@given(st.text("ab \n1", max_size=12), st.text("abc d1", min_size=1, max_size=40), st.integers(1, 60), st.data())
def test_the_pieces_make_no_difference(before: str, unit: str, times: int, data: st.DataObject) -> None:
    text = before + unit * times
    edges = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    detector = RepetitionDetector()
    for start, end in zip([0, *edges], [*edges, len(text)], strict=True):
        detector.push(text[start:end])
    whole, single = RepetitionDetector(), RepetitionDetector()
    whole.push(text)
    for char in text:
        single.push(char)
    assert detector.repeated == whole.repeated == single.repeated


UNITS = st.text("abcdefg ", min_size=1, max_size=60).filter(lambda unit: unit.strip() and "  " not in unit * 2)


@given(UNITS, st.text("xyz", max_size=50))
def test_every_loop_of_words_is_noticed_in_time(unit: str, before: str) -> None:
    """After three periods and 240 characters, and what it takes to look again; no earlier."""
    noticed = found_at(before + unit * (4 + 600 // len(unit)), size=1)
    assert noticed is not None
    period = next(p for p in range(1, len(unit) + 1) if (unit * 3)[p:] == (unit * 3)[:-p])
    start = len(before)
    assert noticed <= start + 3 * period + 240 + 16
    assert noticed >= 240


@pytest.mark.parametrize(("length", "noticed"), [(MAX_PERIOD, True), (MAX_PERIOD + 1, False)])
def test_the_longest_period(length: int, noticed: bool) -> None:
    words = "".join(chr(97 + (n * n + n // 26) % 26) if n % 6 else " " for n in range(length))
    assert (found_at(words * 5) is not None) == noticed

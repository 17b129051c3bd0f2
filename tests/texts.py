"""Text of many kinds, for everything that must not depend on what people write. Own sentences, free to use."""

from __future__ import annotations

import json
from pathlib import Path

# Requests that run together: two begin alike, and each has its own number of tokens to write
PROMPTS = [
    "Some text",
    "Another, longer text to be answered",
    "x",
    "The same beginning, one",
    "The same beginning, two",
]
LENGTHS = (1, 12, 5, 20, 9)

TEXTS = {
    "english": "Could you send me the report by Friday? I'll be out of the office, but we're reachable; don't worry.",
    "spanish": "¿Dónde está la estación? Mañana viajaré con mi hermana pequeña, ¡qué ilusión!",
    "french": "L'été dernier, nous avons goûté un gâteau aux cerises près de l'hôtel, c'était délicieux.",
    "german": "Die Straße ist heute gesperrt, weil größere Bäume umgestürzt sind. Übrigens: schöne Grüße!",
    "chinese": "会议改到下午三点，请大家提前十分钟到场。谢谢！",
    "ukrainian": "Їжак приніс яблуко до ґанку, а п'ятеро гусей ходили подвір'ям.",
    "korean": "내일 아침에 비가 온다고 해서 우산을 챙겼습니다.",
    "arabic": "وصل القطار متأخرا، لكننا لحقنا بالموعد في آخر لحظة.",
    "hindi": "कल हम बाज़ार जाएँगे और ताज़े फल ख़रीदेंगे।",
    "emoji": "family 👩‍👩‍👧‍👦 flag 🏳️‍🌈 thumbs 👍🏽 keycap 3️⃣ heart ❤️",
    "code": "def area(r):\n    if r < 0:\n\t\traise ValueError('r')\n    return 3.14159 * r**2  # πr²\n",
    "numbers": "In 1984 there were 3,141,592 visitors (12.5% more); call +49-30-1234567, room 007, ½ price, x²=Ⅳ.",
    "digits after space": "Total:  42\n\n2024 was    100 times better\n \n7",
    "crlf": "First line\r\nSecond line\r\n\r\n\tThird, indented\r\n",
    "whitespace": "a" + " " * 17 + "b\t\t\t\tc\n\n\n\n\nd   \n   e" + " " * 70 + "f  ",
    "leading space": "  two spaces in front",
    "contractions": "I'M SURE THEY'LL say it's JANE's, y'all'd've known; 'tis he'd",
    "mixed": "Привіт, world!你好123अ1٣四4\u200b\u00a0end\u2028line",
    "punctuation": '«Wait…» —he said— "no!!!"?? (really) [x]{y} <z/> a_b-c/d\\e @f #g $h ^i ~j `k` |l|',
    "one": "x",
    "empty": "",
}

# Decomposed accents: tokenizers that normalize to NFC see these as the composed characters.
DECOMPOSED = "cafe\u0301 nai\u0308ve A\u030angstro\u0308m \u1100\u1161\u11a8"

# Further languages and shapes, which no vocabulary of the tests was trained on.
UNSEEN = {
    "japanese": "明日の会議は午後三時からです。ラーメンを食べてから行きましょう！カタカナもひらがなも。",
    "vietnamese": "Hôm nay trời đẹp quá, chúng ta đi dạo quanh hồ rồi uống cà phê sữa đá nhé?",
    "thai": "พรุ่งนี้ฝนจะตก อย่าลืมพกร่มไปด้วยนะครับ",
    "greek": "Το τρένο άργησε πολύ, αλλά προλάβαμε την τελευταία στιγμή.",
    "hebrew": "הרכבת איחרה, אבל הגענו בזמן לפגישה החשובה.",
    "turkish": "Iğdır'dan İstanbul'a giden otobüs çok geç kalktı; şoför özür diledi.",
    "javascript": "const f = async (x) => {\n\tif (!x?.y) { return `${a}_${b}`; }\n\t// getHTTPResponse2\n};\n\n\n",
    "json": '{"id": 12345678, "tags": ["a-b", "c_d"],\r\n  "ok": true, "π": 3.14e-10}\n',
    "shell": "for f in *.txt; do\n    sed -i 's/[0-9]\\{3\\}/###/g' \"$f\"   # three digits\ndone && echo $?",
    "markdown": "# Title\n\n* one\n* **two**\n\n| a | b |\n|---|--:|\n| 1 | 22 |\n\n```py\nprint('x')\n```",
    "emoji runs": "😀😃😄 👍🏿👍 🇩🇪🇫🇷 1️⃣2️⃣ ⚠️ ☃ (╯°□°)╯︵ ┻━┻",
    "only spaces": " " * 9,
    "only newlines": "\n\n \n\t\n",
    "spaces of every width": "a\u00a0b\u2003c\u3000d\u200be\ufefff\x0bg\x0ch\x85i",
    "metaspace": "a▁b ▁▁ c",
    "controls": "a\x00b\x01\x1f\x7f",
}


def real_lines(limit: int = 400) -> list[str]:
    """Lines of real dialogues and translations in six languages, where the shared data lies beside the project."""
    data = Path(__file__).parents[2] / "shared" / "data"
    lines: list[str] = []
    for file in sorted(data.glob("parallel/en-*.tsv")):
        rows = file.read_text().splitlines()
        lines += [text for row in rows[:: max(1, 6 * len(rows) // limit)] for text in row.split("\t")]
    for file in sorted(data.glob("convsumx/test.jsonl")):
        rows = [json.loads(row) for row in file.read_text().splitlines()]
        lines += [row[key] for row in rows[:: max(1, 10 * len(rows) // limit)] for key in sorted(row)]
    return lines[: 2 * limit]

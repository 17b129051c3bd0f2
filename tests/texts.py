"""Text of many kinds, for everything that must not depend on what people write. Own sentences, free to use."""

from __future__ import annotations

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

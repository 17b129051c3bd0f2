"""A tokenizer.json without the `tokenizers` library: for where that has no build, such as Android.

The ids and the text are the library's, for what the served families are made of: byte-level BPE, SentencePiece's BPE
with byte fallback, Unigram; the cuts, normalizers and decoders that go with them; added tokens. What else a
tokenizer.json may ask for is refused by name. It is written from what the library does, and the tests compare the two
on text of many languages; two things depend on tables of Unicode, the library's and Python's, and can differ for
characters that are newer than one of them: which characters are letters, and how they are normalized.
"""

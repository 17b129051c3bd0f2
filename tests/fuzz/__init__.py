"""Hostile input for every reader: files and requests that somebody made to hurt, or that a disk spoilt.

    python -m tests.fuzz --minutes 5                # every target
    python -m tests.fuzz gguf recipe --minutes 1    # some; --list names them
    make fuzz MINUTES=5

Whatever the bytes are, a reader returns or raises an EdgecalError: in bounded time and memory, with a message of 1 to
600 printable characters, without a warning of a library underneath. `judge` decides that, for one input.

Where `atheris` is installed (extra `fuzz`; libFuzzer's search by coverage of the Python code) it looks for inputs, and
the mutators here, which know the structure of the formats, propose them. Elsewhere the same mutators search alone, and
keep an input when it is refused at a place, or accepted, that no earlier one was.

`targets/NAME.py` has a target, `corpus/NAME/` the inputs that once did harm, and some of each kind: `test_corpus`
replays them.
"""

"""What a machine does to a program: processes that are killed, disks that are full or read-only, files that shrink.

    pytest tests/faults -m "slow or not slow"

After each fault nothing is lost or half-written, the next start works, and the message says what happened. Those that
take more than a second or two are marked slow and are not part of `make test`.
"""

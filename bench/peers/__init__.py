"""edgecal beside its peers, interleaved in one run. See __main__.py for the protocol.

workers.py imports nothing of the other modules but its one engine of engines/: each engine's process should carry that
engine's libraries only, because its resident memory is one of the things measured.
"""

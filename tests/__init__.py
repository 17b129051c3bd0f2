"""The tests. Threads that wait must not spin here: PyTorch, OpenBLAS and OpenMP share two cores."""

import os
import signal

# Before the first import of NumPy, which is why this does not stand in conftest.py
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

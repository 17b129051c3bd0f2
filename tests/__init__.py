"""The tests. Threads that wait must not spin here: PyTorch, OpenBLAS and OpenMP share two cores."""

import os

# Before the first import of NumPy, which is why this does not stand in conftest.py
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

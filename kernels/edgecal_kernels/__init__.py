"""The arithmetic of edgecal: packed number formats, and every operation of the forward pass in two back ends.

`quant` defines the formats, `reference` the operations (NumPy), `numba_ops` is the same compiled; `dispatch.backend()`
gives the one that serves on this machine. `kernels/README.md` has the table and the picture.
"""

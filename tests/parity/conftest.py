"""PyTorch on one thread: its threads and the kernels' wait for each other spinning, which on two cores can take ten
times as long as the computation, and one thread is hardly slower at these sizes.
"""

from __future__ import annotations

import torch

torch.set_num_threads(1)

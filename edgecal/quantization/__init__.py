"""Quantizing for the inputs that modules see: error feedback (GPTQ) and scales under the sizes of inputs."""

from __future__ import annotations

from .calibrate import quantize_calibrated, rounded_before

__all__ = ["quantize_calibrated", "rounded_before"]

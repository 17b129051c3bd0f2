"""The root of every error that edgecal raises on purpose, and the two that arithmetic can raise."""

from __future__ import annotations


class EdgecalError(Exception):
    """Base of the family: catch this to catch everything that edgecal refuses."""


class QuantizationError(EdgecalError, ValueError):
    """A tensor cannot be represented in the asked format (NaN, overflow of the fp16 scales, bad group size)."""


class BackendError(EdgecalError):
    """An unknown back end was asked for, or this machine cannot run it."""

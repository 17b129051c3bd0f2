"""Weights of a mean on the sphere: which linear combination of vectors lies between their directions.

For two vectors with angle theta, the weights of v_0 and v_1 are sin((1 - t) theta) / sin theta and sin(t theta) /
sin theta (Shoemake 1985), in mergekit's variant: the angle is that of the normalized vectors, the weights are applied
to the vectors as they are, and t between them is linear where they are nearly parallel or opposite (|cos| > 0.9995).

For more than two this takes the Karcher mean of the directions, the point whose weighted arcs to all of them cancel.
It is a combination of the directions, whose weights are again applied to the vectors as they are; for two vectors it
is slerp with t = w_1, and the order never matters. Where there is no such point (opposite directions) the weights stay
as given. Only inner products are needed, so that any representation of the vectors will do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
PARALLEL = 0.9995  # mergekit's threshold
_SHORTEST = 1e-8
_ROUNDS = 500


def spherical_weights(gram: Doubles, weights: Sequence[float]) -> Doubles:
    """(n,) weights for n vectors with inner products `gram` (n, n); `weights` are positive or 0 and sum to 1."""
    given = np.asarray(weights, np.float64)
    if len(given) == 1:
        return np.ones(1)
    norms = np.sqrt(np.diag(gram))
    norms = np.where(norms > _SHORTEST, norms, 1)
    cosines = np.clip(gram / np.outer(norms, norms), -1, 1)
    if len(given) == 2:
        return _between_two(float(cosines[0, 1]), float(given[1]))
    return _karcher_mean(cosines, given)


def _between_two(cosine: float, t: float) -> Doubles:
    if abs(cosine) > PARALLEL:
        return np.array([1 - t, t])
    theta = np.arccos(cosine)
    return np.array([np.sin((1 - t) * theta), np.sin(t * theta)]) / np.sin(theta)


def _karcher_mean(cosines: Doubles, weights: Doubles) -> Doubles:
    length = np.sqrt(weights @ cosines @ weights)
    if length < _SHORTEST:
        return weights
    mean = weights / length  # coefficients of a unit vector, here and below
    for _ in range(_ROUNDS):
        towards = np.clip(cosines @ mean, -1, 1)
        if towards.min() < -PARALLEL:
            return weights
        angles = np.arccos(towards)
        stretched = weights * np.where(angles > 1e-6, angles / np.maximum(np.sin(angles), 1e-12), 1)
        step = stretched - (stretched @ towards) * mean
        distance = float(step @ cosines @ step) ** 0.5 if step @ cosines @ step > 0 else 0.0
        if distance < 1e-12:
            break
        mean = np.cos(distance) * mean + np.sin(distance) / distance * step
        mean /= np.sqrt(mean @ cosines @ mean)
    return mean

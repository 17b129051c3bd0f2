"""A measurement as a picture: per component the spread of dW's values, and its norm layer by layer.

matplotlib is an extra (`pip install edgecal[plot]`): the numbers need none of it. The two series differ in hue, line
and lightness, so that they can be told apart in grey and by colour-blind readers (colours of Okabe and Ito).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgecal_weights.files import atomic_write

from ..errors import OptionError
from .figure import BINS, Measurement, ModuleValues, Values

BLUE, ORANGE = "#0072B2", "#E69F00"
_DPI = 130


def require_matplotlib() -> None:
    """OptionError where it is not installed, before anything is measured for a picture."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise OptionError(
            "the figure needs matplotlib, which is not installed; install it with: pip install 'edgecal[plot]' "
            "(the numbers need nothing: --out FILE.json, FILE.csv)"
        ) from None


def save_picture(measurement: Measurement, path: str | Path) -> None:
    """Write the figure in the form of the name's ending (png, svg, pdf), whole or not at all.

    OptionError without matplotlib, StorageError when it cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    components = measurement.components
    rows = len(components)
    figure = Figure(figsize=(10.5, 1.5 + 1.75 * rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False, width_ratios=(1, 1.15))
    for (left, right), name in zip(axes, components, strict=True):
        modules = [m for m in measurement.modules if m.component == name]
        _spread(left, modules, name)
        _norms(right, modules)
    axes[0][0].set_title("values of ΔW, all layers (log density)", fontsize=11)
    axes[0][1].set_title("Frobenius norm of ΔW by layer", fontsize=11)
    axes[-1][1].set_xlabel("layer")
    lines, _ = axes[0][1].get_legend_handles_labels()
    labels = [str(measurement.recipe["method"])]
    if measurement.baseline is not None:
        labels.append(f"{measurement.baseline['method']} (baseline)")
    legend = figure.legend(
        lines, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=11, title=_title(measurement)
    )
    legend.get_title().set_fontsize(12)
    with atomic_write(path) as partial:
        figure.savefig(partial, format=Path(path).suffix[1:].lower())


def _title(measurement: Measurement) -> str:
    named = measurement.recipe.get("adapters", ())
    adapters = " + ".join(a if isinstance(a, str) else a["name"] for a in named) or "a calibration alone"
    return f"Weight changes of {adapters} on {Path(measurement.model).name}"


def _spread(axes: Any, modules: list[ModuleValues], name: str) -> None:
    half = modules[0].half_range
    exponent = int(np.floor(np.log10(half))) if half > 0 else 0
    edges = np.linspace(-half, half, BINS + 1) / 10.0**exponent
    width = edges[1] - edges[0]

    def density(series: list[Values]) -> Any:
        """Of all that was sampled, so that what lies outside the bins is missing from the area."""
        counts = np.sum([values.counts for values in series], axis=0)
        return counts / max(1, sum(values.sampled for values in series)) / width

    baseline = [m.baseline for m in modules if m.baseline is not None]
    if baseline:
        axes.stairs(density(baseline), edges, fill=True, color=ORANGE, alpha=0.45, linewidth=0)
        axes.stairs(density(baseline), edges, color=ORANGE, linewidth=1.2, linestyle="--")
    axes.stairs(density([m.recipe for m in modules]), edges, color=BLUE, linewidth=1.6)
    axes.set_yscale("log")
    axes.set_ylabel(name, fontsize=11)
    axes.set_xlabel(f"value in units of $10^{{{exponent}}}$", fontsize=9)
    _tidy(axes)


def _norms(axes: Any, modules: list[ModuleValues]) -> None:
    layers = [m.layer if m.layer is not None else i for i, m in enumerate(modules)]
    marks = {"markersize": 4.5, "linewidth": 1.5}
    axes.plot(layers, [m.recipe.norm for m in modules], "o-", color=BLUE, label="recipe", zorder=3, **marks)
    baseline = [m.baseline.norm for m in modules if m.baseline is not None]
    if baseline:
        at = [layer for layer, m in zip(layers, modules, strict=True) if m.baseline is not None]
        axes.plot(at, baseline, "s--", color=ORANGE, label="baseline", mfc="white", **marks)
    axes.set_ylim(0, 1.1 * max(*(m.recipe.norm for m in modules), *baseline, 1e-30))
    axes.locator_params(axis="x", integer=True)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.tick_params(labelsize=9)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

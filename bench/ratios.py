"""Compare a run of the pytest-benchmark suites with the stored baseline, by ratios to the yardsticks of the same run.

    python -m pytest bench --benchmark-json=run.json
    python -m bench.ratios run.json                      # exit code 1: something is slower than 1.25 times the baseline
    python -m bench.ratios run.json --update             # make this run, of this machine, the baseline of its kind

Seconds of two machines say little about each other; how many plain reads, or how much plain arithmetic, a benchmark is
worth says more. Even so a ratio belongs to an instruction set and a number of threads: the baseline has a part for
each, and a run of another kind is shown and not judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .machine import facts

BASELINE = Path(__file__).parent / "results" / "kernels.json"
LIMIT = 1.25


def run_ratios(path: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """(instruction set and threads, {name: {"ratio", "beside"}}) of a --benchmark-json file; SystemExit for others."""
    try:
        rows = [(row["name"], row["extra_info"]) for row in json.loads(path.read_text())["benchmarks"]]
        found = {name: {"ratio": round(float(e["ratio"]), 4), "beside": e["beside"]} for name, e in rows}
        (kind,) = {str(extra["kind"]) for _, extra in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is no result of `pytest bench --benchmark-json`: {error!r}") from error
    return kind, found


def judge(
    run: dict[str, dict[str, Any]], stored: dict[str, dict[str, Any]], limit: float
) -> list[tuple[str, float, float | None, str]]:
    """(name, ratio, run by baseline, verdict) of every benchmark of either."""
    rows = []
    for name in sorted({*run, *stored}):
        if name not in run:
            rows.append((name, float("nan"), None, "not run"))
            continue
        ratio = run[name]["ratio"]
        if name not in stored or stored[name]["beside"] != run[name]["beside"]:
            rows.append((name, ratio, None, "new"))
            continue
        change = ratio / stored[name]["ratio"]
        verdict = "SLOWER" if change > limit else "faster" if change < 1 / limit else ""
        rows.append((name, ratio, change, verdict))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"slower beyond this is an error ({LIMIT})")
    parser.add_argument("--update", action="store_true", help="keep this run as the baseline of its kind")
    chosen = parser.parse_args(arguments)
    kind, run = run_ratios(chosen.run)
    baseline = json.loads(chosen.baseline.read_text()) if chosen.baseline.exists() else {}
    if chosen.update:
        baseline[kind] = {"machine": facts(), "ratios": dict(sorted(run.items()))}
        chosen.baseline.write_text(json.dumps(baseline, indent=1) + "\n")
        print(f"{chosen.baseline}: {len(run)} ratios for {kind}")
        return 0
    stored = baseline.get(kind, {}).get("ratios", {})
    if not stored:
        print(f"no baseline for {kind}; it has: {'; '.join(baseline) or 'none'}")
    rows = judge(run, stored, chosen.limit)
    for name, ratio, change, verdict in rows:
        shown = "" if change is None else f"{change:6.2f}"
        print(f"{name:58s} {ratio:9.4f} {shown:>6s} {verdict}")
    slower = sum(verdict == "SLOWER" for *_, verdict in rows)
    print(f"{slower} slower than {chosen.limit:g} times the baseline")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())

"""Where Linux keeps what the control groups of this process grant it: containers and services live in such groups."""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def places(root: Path, controller: str) -> set[tuple[Path, int]]:
    """(folder, version of control groups) of every level of the hierarchy that may limit `controller`.

    They need not exist. `root` is where proc and sys are. A container sees its own group at the top, whatever path it
    is told.
    """
    groups = root / "sys/fs/cgroup"
    found = {(groups, 2), (groups / controller, 1)}
    for line in lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        group = PurePosixPath(path.lstrip("/"))
        if ".." in group.parts:
            continue
        levels = (group, *group.parents)
        if number == "0":
            found |= {(groups / level, 2) for level in levels}
        elif controller in controllers.split(","):
            found |= {(groups / name / level, 1) for level in levels for name in (controller, controllers)}
    return found


def lines(path: Path) -> list[str]:
    """Of a file of the system; none where it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except (OSError, ValueError):
        return []

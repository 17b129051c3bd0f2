"""For mkdocs: README, CONTRIBUTING and others of the repository become pages, and links follow them.

A link goes from one file of the repository to another, so that it works where the files are read as they are. On the
site it goes to the page that the file has become; where it has become none (a source file, a measurement) its text
stays.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "kernels/README.md": "kernels.md",
    "bench/README.md": "measurements.md",
}
"""Files outside docs/, and the pages that they become."""
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]*(?:\n[^\]\n]*)?)\]\((?P<target>[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        text = follow((ROOT / source).read_text(), source)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri in PAGES.values():
        return markdown
    return follow(markdown, f"docs/{page.file.src_uri}")


def follow(text: str, source: str) -> str:
    """The text of a file of the repository with its links as they are on the site."""
    page = PAGES.get(source) or posixpath.relpath(source, "docs")

    def link(match: re.Match[str]) -> str:
        path, anchor, fragment = match["target"].partition("#")
        if "://" in path or not path:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{source} links to {match['target']}, and there is no {target}")
        if target in PAGES:
            target = PAGES[target]
        elif target.startswith("docs/"):
            target = posixpath.relpath(target, "docs")
        else:
            return match["text"]
        return f"[{match['text']}]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{anchor}{fragment})"

    return _LINK.sub(link, text)

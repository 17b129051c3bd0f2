"""One file of a data set on the hub, through huggingface_hub and its cache."""

from __future__ import annotations

from pathlib import Path

from ...errors import BenchmarkError


def fetch_file(repo: str, file: str) -> Path:
    """`repo` is "org/name" or "org/name@revision". BenchmarkError says what the hub said."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise BenchmarkError(f"to fetch the data set {repo} needs the package huggingface-hub ({error})") from error
    name, _, revision = repo.partition("@")
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchmarkError(f"{file} of the data set {name} could not be fetched: {first[:300]}") from error

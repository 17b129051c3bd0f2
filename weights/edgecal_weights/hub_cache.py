"""What huggingface_hub keeps of models on this machine, and how to be rid of it. The network is not touched."""

from __future__ import annotations

from typing import NamedTuple

from .errors import StorageError


class CachedRepo(NamedTuple):
    """`name` is "org/name"; `path` its folder; `nbytes` on disk, shared files once; `used_s` seconds since 1970."""

    name: str
    path: str
    nbytes: int
    used_s: float


def cached_models() -> list[CachedRepo]:
    """All models and adapters in the cache, by name; an empty list where nothing was ever downloaded, or the
    package that does it is not installed."""
    try:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError:
        return []
    try:
        repos = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except (CacheNotFound, OSError, ValueError):
        return []
    return sorted(CachedRepo(r.repo_id, str(r.repo_path), r.size_on_disk, r.last_accessed) for r in repos)


def remove_cached_model(name: str) -> None:
    """Every revision of it; StorageError when the disk does not let go."""
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir()
    revisions = [r.commit_hash for repo in cache.repos if repo.repo_id == name for r in repo.revisions]
    try:
        cache.delete_revisions(*revisions).execute()
    except OSError as error:
        raise StorageError(f"{name} could not be removed: {error.strerror or error}") from error

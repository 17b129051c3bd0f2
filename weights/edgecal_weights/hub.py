"""Models and adapters from the Hugging Face hub, or from any server that speaks its protocol (HF_ENDPOINT).

Downloading, resuming, caching and checking are huggingface_hub's; its cache is used, so a model that
transformers fetched is there for edgecal and the other way round. What is added here is the choice of files
and the advice when something fails. Of a repository's files only those are fetched that a Llama-family model
needs: the JSON files, the chat template, the safetensors of the model itself. Pickles, ONNX, second copies
(`consolidated.safetensors`, `original/`) and images stay where they are.

Many repositories hold a dozen GGUF files of one model. "org/name:Q4_K_M" chooses by quantization, spelled as
in llama.cpp's `-hf`; a repository with nothing but several GGUF files is not guessed at.

`offline=True` (or HF_HUB_OFFLINE=1) never touches the network. Without it, a cached model is also served when
the network happens to be down.
"""

from __future__ import annotations

import errno
import glob
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import HubError, ModelNotFoundError, StorageError, WeightsError
from .file_kind import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, MODEL_CONFIG, PART_NAME, is_model_weights
from .files import Progress
from .hf_config import read_json

_SIDE_FILES = (
    MODEL_CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)
_TEMPLATE = re.compile(r"additional_chat_templates/[^/]+\.jinja")
_PICKLED_ADAPTER = "adapter_model.bin"
_ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
MODEL_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(:(?P<quant>[\w.-]+))?")
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def download(
    model_id: str,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch "org/name" or "org/name:QUANT" into huggingface_hub's cache, unless it is there.

    Returns the directory of a safetensors model, or the (first) GGUF file. `revision` is a branch, tag or
    commit. `progress` receives bytes done, bytes in all, file or repository. Raises HubError (network,
    offline, revision, authorization), ModelNotFoundError (no such repository, no file that edgecal reads, or
    several and none chosen) or StorageError.
    """
    match = MODEL_ID.fullmatch(model_id)
    if match is None:
        raise ModelNotFoundError(f"{model_id!r} is not a hub id; expected org/name or org/name:QUANT")
    repo, quant = match["repo"], match["quant"]

    def choose(files: Sequence[str]) -> list[str]:
        return _model_files(repo, quant, files)

    folder, chosen = _fetch(repo, choose, revision, offline, progress)
    _check_shards(repo, folder, chosen)
    ggufs = [name for name in chosen if name.lower().endswith(".gguf")]
    return folder / ggufs[0] if ggufs else folder


def download_adapter(
    adapter_id: str,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch the PEFT adapter "org/name"; returns its directory. Arguments and errors as for `download`."""

    def choose(files: Sequence[str]) -> list[str]:
        missing = [name for name in _ADAPTER_FILES if name not in files]
        if missing:
            hint = "; edgecal does not load pickles (.bin)" if _PICKLED_ADAPTER in files else ""
            raise ModelNotFoundError(f"{adapter_id} is not a PEFT adapter: it has no {missing[0]}{hint}")
        return list(_ADAPTER_FILES)

    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", adapter_id):
        raise ModelNotFoundError(f"{adapter_id!r} is not a hub id; expected org/name")
    return _fetch(adapter_id, choose, revision, offline, progress)[0]


def download_config(model_id: str, *, revision: str | None = None, offline: bool | None = None) -> Path:
    """Fetch nothing of "org/name" but its config.json; returns that file. Arguments and errors as for `download`."""

    def choose(files: Sequence[str]) -> list[str]:
        if MODEL_CONFIG not in files:
            hint = "; GGUF files hold the configuration themselves: give one" if _has_gguf(files) else ""
            raise ModelNotFoundError(f"{model_id} has no config.json{hint}")
        return [MODEL_CONFIG]

    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model_id):
        raise ModelNotFoundError(f"{model_id}: no such file or directory, and not a hub id of the form org/name")
    return _fetch(model_id, choose, revision, offline, None)[0] / MODEL_CONFIG


def _has_gguf(files: Sequence[str]) -> bool:
    return any(name.lower().endswith(".gguf") for name in files)


def _model_files(repo: str, quant: str | None, files: Sequence[str]) -> list[str]:
    """The files to fetch of those that the repository has; weights first."""
    here = [name for name in files if "/" not in name]
    ggufs = [n for n in files if n.lower().endswith(".gguf") and not Path(n).name.lower().startswith("mmproj")]
    if quant is not None:
        return _one_gguf(repo, ggufs, quant)
    shards = [name for name in here if _SHARD.fullmatch(name)]
    if not shards:
        shards = [name for name in here if is_model_weights(name)]
    if shards and ADAPTER_CONFIG in here and _PICKLED_ADAPTER in here and ADAPTER_WEIGHTS not in here:
        raise ModelNotFoundError(
            f"{repo} holds a model and a PEFT adapter that transformers applies to it, but {_PICKLED_ADAPTER} is a "
            "pickle, which runs code when loaded: look for a converted copy, or for the model alone"
        )
    if shards and MODEL_CONFIG in here:
        if "model.safetensors" in shards:
            shards = ["model.safetensors"]
        wanted = (*_SIDE_FILES, INDEX, *(_ADAPTER_FILES if ADAPTER_CONFIG in here else ()))
        beside = [name for name in here if name in wanted]
        return [*shards, *beside, *(name for name in files if _TEMPLATE.fullmatch(name))]
    if ggufs:
        return _one_gguf(repo, ggufs, None)
    if ADAPTER_CONFIG in here:
        raise ModelNotFoundError(f"{repo} is a PEFT adapter, not a model; give it with its base model")
    pickles = any(name.endswith((".bin", ".pt", ".pth")) for name in here)
    raise ModelNotFoundError(
        f"{repo} has no safetensors and no GGUF file"
        + ("; its weights are pickles, which run code when loaded: look for a converted copy" if pickles else "")
    )


def _one_gguf(repo: str, ggufs: Sequence[str], quant: str | None) -> list[str]:
    """The parts of the one GGUF model that `quant` names (any, if there is only one)."""
    models: dict[str, list[str]] = {}
    for name in sorted(ggufs):
        split = PART_NAME.fullmatch(name)
        models.setdefault(split[1] if split else name[: -len(".gguf")], []).append(name)
    if quant is not None:
        tail = re.compile(rf"(^|[-._/]){re.escape(quant)}$", re.IGNORECASE)
        fitting = {stem: parts for stem, parts in models.items() if tail.search(stem)}
    else:
        fitting = models
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    listed = ", ".join(Path(parts[0]).name for parts in models.values()) or "none"
    if quant is not None and not fitting:
        raise ModelNotFoundError(f"{repo} has no GGUF file of quantization {quant!r}; its GGUF files: {listed}")
    raise ModelNotFoundError(
        f"{repo} has {len(fitting)} GGUF models; choose a quantization, as in {repo}:Q4_K_M, of: {listed}"
    )


def _listed(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _check_shards(repo: str, folder: Path, chosen: Sequence[str]) -> None:
    """A snapshot that an interrupted download left behind looks like a whole one."""
    if INDEX not in chosen or "model.safetensors" in chosen:
        return
    weight_map = read_json(folder / INDEX).get("weight_map")
    files = weight_map.values() if isinstance(weight_map, dict) else ()
    needed = {file for file in files if isinstance(file, str)}
    missing = sorted(file for file in needed if not (folder / file).exists())
    if missing:
        raise HubError(
            f"{repo} is in the cache only in part: {len(missing)} of {len(needed)} shards are missing "
            f"({missing[0]} ...); download it again with a network"
        )


def _fetch(
    repo: str,
    choose: Callable[[Sequence[str]], list[str]],
    revision: str | None,
    offline: bool | None,
    progress: Progress | None,
) -> tuple[Path, list[str]]:
    """The snapshot's directory, and the files in it that `choose` picked from the repository's (or the cache's)."""
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError as error:
        raise HubError(
            f"{repo} is not here, and to fetch it from the hub needs the package huggingface-hub ({error}); install it "
            "(docs/install.md, on Android docs/termux.md), or give a folder or a file"
        ) from error
    if offline is None:
        offline = bool(constants.HF_HUB_OFFLINE)
    trouble: Exception | None = None
    if not offline:
        try:
            siblings = HfApi().model_info(repo, revision=revision).siblings or []
            chosen = choose([file.rfilename for file in siblings])
            return _snapshot(repo, revision, chosen, progress), chosen
        except WeightsError:
            raise
        except Exception as error:  # each generation of huggingface_hub has another HTTP library underneath
            trouble = _cause(error)
            if not _is_unreachable(trouble):
                raise _explained(repo, revision, trouble) from error
    try:
        cached = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[MODEL_CONFIG]))
    except Exception as error:
        raise _not_cached(repo, revision, trouble) from (trouble or error)
    try:
        return cached, choose(_listed(cached))
    except ModelNotFoundError as error:
        raise HubError(f"the cache has {repo} only in part: {error}; fetch it once with a network") from error


def _snapshot(repo: str, revision: str | None, files: Sequence[str], progress: Progress | None) -> Path:
    """Download; a transfer that breaks off is taken up again where it stopped, a few times."""
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in files]
    retries = 2
    while True:
        try:
            bar = _progress_bar(repo, progress)
            return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, tqdm_class=bar))
        except Exception as error:
            if not retries or not _is_unreachable(_cause(error)):
                raise
        retries -= 1
        time.sleep(0.5)


def _progress_bar(repo: str, progress: Progress | None) -> type[Any]:
    """A class that huggingface_hub takes for a progress bar: draws nothing, hands the bytes on.

    Several bars may count the same bytes (as they arrive, as they are written); the one that is ahead is told.
    """
    from huggingface_hub.utils import tqdm

    counts: dict[int, tuple[int, int]] = {}

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self._counts_bytes and progress is not None:
                counts[id(self)] = int(self.n), int(self.total or 0)
                done, total = max(counts.values())
                progress(done, max(done, total), repo)

    return Bar


def _cause(error: Exception) -> Exception:
    """huggingface_hub reports some refusals of the server as "not in the cache": the refusal is what counts."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _is_unreachable(error: Exception) -> bool:
    """No answer, or none that means anything: what the cache has is then better than nothing."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return True
    if isinstance(error, errors.HfHubHTTPError):
        return _status(error) >= 500
    if isinstance(error, (errors.HFValidationError, errors.OfflineModeIsEnabled)) or _is_disk_full(error):
        return False
    return "Consistency check failed" not in str(error)


def _status(error: Any) -> int:
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)


def _is_disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EROFS,
    )


def _explained(repo: str, revision: str | None, error: Exception) -> WeightsError:
    """What huggingface_hub raised, in terms of what to do about it."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{repo} is gated: accept its terms at {page}, then {login}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo} has no revision {revision!r}; its branches and tags are listed at {page}/tree/main")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"there is no model {repo} at {constants.ENDPOINT}, or it is private; check the spelling, or {login}"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"{repo} cannot be fetched while HF_HUB_OFFLINE is set; unset it, or use offline mode")
    if isinstance(error, errors.HfHubHTTPError):
        status = _status(error)
        if status in (401, 403):
            return HubError(f"{constants.ENDPOINT} refuses {repo} ({status}); {login}")
        if status == 429:
            return HubError(f"{constants.ENDPOINT} limits the rate of requests (429); wait, or {login}")
        return HubError(f"{constants.ENDPOINT} answered {status} for {repo}: {_first_line(error)}")
    if _is_disk_full(error):
        assert isinstance(error, OSError)
        return StorageError(
            f"{repo} could not be stored in {constants.HF_HUB_CACHE}: {error.strerror}; free some space, "
            "or set HF_HOME to a folder on another disk"
        )
    return HubError(f"{repo} could not be fetched: {_first_line(error)}; run the command again to resume")


def _not_cached(repo: str, revision: str | None, trouble: Exception | None) -> WeightsError:
    from huggingface_hub import constants

    what = repo if revision is None else f"{repo} at revision {revision!r}"
    if trouble is None:
        return HubError(
            f"{what} is not, or not completely, in the cache {constants.HF_HUB_CACHE}, and offline mode "
            "is on (--offline or HF_HUB_OFFLINE); fetch it once with a network"
        )
    return HubError(
        f"{what} is not in the cache, and {constants.ENDPOINT} could not be reached "
        f"({_first_line(trouble)}); check the network, a proxy (HTTPS_PROXY), or HF_ENDPOINT"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

"""From a model reference to an open checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from meldkit.checkpoint.folder import Checkpoint, open_checkpoint
from meldkit.errors import CheckpointError
from meldkit.recipe.refs import ModelRef

#: What of a hub repository is needed to merge it.
_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken"]
#: The same weights once more, in their authors' own format.
_IGNORED = ["original/*", "consolidated*"]
#: What the hub accepts as an id: `organisation/name`.
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def open_model(ref: ModelRef, *, cache: Path | None = None) -> Checkpoint:
    """Open the model that a recipe refers to, downloading it first if it is not a local path.

    Args:
        ref: the reference.
        cache: where downloads are kept; None for the hub's own cache.

    Raises:
        CheckpointError: there is no such path, or the hub has no such model or cannot be reached.
    """
    folder = _locate(ref.path, ref.revision, cache)
    adapters = tuple(_locate(a.path, a.revision, cache) for a in ref.adapters)
    return open_checkpoint(str(ref), folder, adapters)


def _locate(path: str, revision: str | None, cache: Path | None) -> Path:
    try:
        local = Path(path).expanduser()
        if local.exists():
            return local
    except (OSError, RuntimeError) as e:  # the name is too long, may not be looked at, or `~nobody`
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise CheckpointError(
            f"model '{path}' cannot be opened: {reason}", hint="check the path in the recipe"
        ) from e
    if not _HUB_ID.fullmatch(path):
        raise CheckpointError(
            f"model '{path}' does not exist",
            hint=f"looked for {local.absolute()}; check the path in the recipe"
            + ("" if re.search(r"[/\\]", path) else "; a model of the Hugging Face Hub is written org/name"),
        )
    return _download(path, revision, cache)


def _download(repo: str, revision: str | None, cache: Path | None) -> Path:
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Among its bases is the error of the HTTP library, which differs between versions of the hub's client.
    http_errors = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        folder = snapshot_download(
            repo, revision=revision, cache_dir=cache, allow_patterns=_PATTERNS, ignore_patterns=_IGNORED
        )
    except (OSError, HFValidationError, *http_errors) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CheckpointError(
            f"model '{repo}' is neither a local path nor to be had from the Hugging Face Hub: {reason}",
            hint="check the spelling, your connection, and HF_TOKEN for private or gated models",
        ) from e
    return Path(folder)

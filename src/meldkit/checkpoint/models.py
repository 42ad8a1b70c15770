"""From a model reference to an open checkpoint."""

from __future__ import annotations

from pathlib import Path

from meldkit.checkpoint.folder import Checkpoint, open_checkpoint
from meldkit.errors import CheckpointError
from meldkit.recipe.refs import ModelRef

#: What of a hub repository is needed to merge it.
_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken"]


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
    local = Path(path).expanduser()
    if local.exists():
        return local
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise CheckpointError(
            f"model '{path}' does not exist",
            hint=f"looked for {local.absolute()}; check the path in the recipe",
        )
    return _download(path, revision, cache)


def _download(repo: str, revision: str | None, cache: Path | None) -> Path:
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, cache_dir=cache, allow_patterns=_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CheckpointError(
            f"model '{repo}' is neither a local path nor to be had from the Hugging Face Hub: {reason}",
            hint="check the spelling, your connection, and HF_TOKEN for private or gated models",
        ) from e

"""From a model reference to an open checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from meldkit.checkpoint.folder import Checkpoint, lay_over, open_checkpoint
from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.weights import SUFFIXES, read_file
from meldkit.errors import CheckpointError, nearest
from meldkit.recipe.refs import AdapterRef, ModelRef

#: What the hub accepts as an id: `organisation/name`.
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
#: How the address of a model's page begins.
_HUB_PAGE = re.compile(r"https?:/+(www\.)?(huggingface\.co|hf\.co)/+")
_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|[^/]*\\")
#: One weight file of such a model: `organisation/name/file` or `organisation/name:file`.
_HUB_FILE = re.compile(
    rf"(?P<repo>{_HUB_ID.pattern})[/:]"
    rf"(?P<file>(?:\w[\w.-]*/)*\w[\w.-]*(?:{'|'.join(map(re.escape, SUFFIXES))}))",
    re.ASCII,
)

#: Says where a model is now that lies elsewhere than a reference says.
Locate = Callable[[ModelRef], ModelRef]


def open_model(
    ref: ModelRef,
    *,
    cache: Path | None = None,
    alone: bool = False,
    headers_only: bool = False,
    locate: Locate | None = None,
) -> Checkpoint:
    """Open the model that a recipe refers to, downloading it first if it is not a local path.

    Args:
        ref: the reference.
        cache: where downloads are kept; None for the hub's own cache.
        alone: leave aside what lies beside a weight file.
        headers_only: of weights that are neither local nor in the cache, fetch only what planning looks at.
        locate: where models are now; they keep the names that references give them.

    Raises:
        CheckpointError: there is no such path, or the hub has no such model or cannot be reached.
    """
    search = _Search(cache, headers_only, locate)
    there = locate(ref) if locate else ref
    opened = _opened(there, search.locate(there.path, there.revision), search, alone)
    return replace(opened, label=str(ref))


def open_as_stored(ref: ModelRef, *, cache: Path | None = None, headers_only: bool = False) -> Checkpoint:
    """The same, but an adapter without a base model is opened as what it is.

    It has its own tensors, named after the modules that they change, and no configuration.

    Raises:
        CheckpointError: there is no such path, or the hub has no such model or cannot be reached.
    """
    search = _Search(cache, headers_only)
    folder = search.locate(ref.path, ref.revision)
    if ref.adapters or not _is_adapter(folder):
        return _opened(ref, folder, search, alone=False)
    from meldkit.checkpoint.adapter import PREFIX, weights_file

    header = read_file(weights_file(folder))
    return Checkpoint(
        label=str(ref),
        folder=folder,
        tensors={
            (own := name.removeprefix(PREFIX)): replace(t, name=own) for name, t in header.tensors.items()
        },
        config={},
        tokenizer=None,
        adapters=(),
        fingerprint=header.digest,
        notes=tuple(search.notes),
        absent=search.absent,
    )


def lone_adapters(
    refs: Sequence[ModelRef],
    *,
    cache: Path | None = None,
    anywhere: bool = False,
    locate: Locate | None = None,
) -> list[Path] | None:
    """The folders of models that are adapters by themselves; None if one is something else.

    Args:
        refs: of the models.
        cache: where downloads are kept.
        anywhere: look on the hub for those that are not here; else they are something else.
        locate: where models are now.

    Raises:
        CheckpointError: there is no such path, or the hub has no such model or cannot be reached.
    """
    refs = list(map(locate, refs)) if locate else refs
    if any(ref.adapters or not (anywhere or _is_here(ref)) for ref in refs):
        return None
    search = _Search(cache, headers_only=False)
    folders = [search.locate(ref.path, ref.revision) for ref in refs]
    return folders if all(map(_is_adapter, folders)) else None


def folders_here(refs: Sequence[ModelRef]) -> dict[Path, str]:
    """The folders of models and adapters that are named by where they lie, and which references name them."""
    named = [(place, str(ref)) for ref in refs for place in (ref, *ref.adapters) if _is_here(place)]
    places = {Path(place.path).expanduser(): label for place, label in named}
    return {path.parent if path.is_file() else path: label for path, label in places.items()}


def _is_here(ref: ModelRef | AdapterRef) -> bool:
    try:
        return Path(ref.path).expanduser().exists()
    except (OSError, RuntimeError):  # too long, or `~nobody`: whoever opens it says so
        return False


def with_adapters(
    checkpoint: Checkpoint,
    ref: ModelRef,
    *,
    cache: Path | None = None,
    headers_only: bool = False,
    locate: Locate | None = None,
) -> Checkpoint:
    """A checkpoint that is no model by itself, with the adapters that a reference lays over it.

    Raises:
        CheckpointError: there is no such adapter, or it is damaged.
        MismatchError: an adapter of another base.
    """
    if not ref.adapters:
        return checkpoint
    search = _Search(cache, headers_only)
    there = locate(ref) if locate else ref
    folders = [search.locate(a.path, a.revision) for a in there.adapters]
    named = replace(checkpoint, label=str(ref), absent={**checkpoint.absent, **search.absent})
    return lay_over(named, folders, named.folder, named.config, [named.fingerprint])


def _opened(ref: ModelRef, folder: Path, search: _Search, alone: bool) -> Checkpoint:
    adapters = [search.locate(a.path, a.revision) for a in ref.adapters]
    while _is_adapter(folder):
        if folder in adapters:
            raise CheckpointError(
                f"model '{ref}': {folder} is a LoRA adapter that is its own base model",
                hint=f"write it as BASE_MODEL+{ref}",
            )
        adapters.insert(0, folder)
        folder = search.locate_base(str(ref), folder)
    checkpoint = open_checkpoint(str(ref), folder, tuple(adapters), alone=alone)
    return replace(checkpoint, absent=search.absent, notes=(*search.notes, *checkpoint.notes))


def _is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / "adapter_config.json").exists() and not any(
        any(folder.glob(pattern)) for pattern in ("model*.safetensors", "pytorch_model*.bin")
    )


class _Search:
    """Looks for models and remembers what is not here yet."""

    def __init__(self, cache: Path | None, headers_only: bool, moved: Locate | None = None) -> None:
        self._cache = cache
        self._headers_only = headers_only
        self._moved = moved
        self.absent: dict[Path, int] = {}
        self.notes: list[str] = []

    def locate_base(self, label: str, adapter: Path) -> Path:
        """The model that an adapter names as its base: seen from the adapter, from here, or on the hub."""
        from meldkit.checkpoint.adapter import base_of

        name, revision = base_of(adapter)
        if not name:
            raise CheckpointError(
                f"model '{label}': {adapter} is a LoRA adapter that names no base model",
                hint=f"write it as BASE_MODEL+{label}",
            )
        try:
            beside = adapter / name
            if beside.exists():
                return beside
            base = ModelRef(name, revision)
            base = self._moved(base) if self._moved else base
            return self.locate(base.path, base.revision)
        except (OSError, ValueError, CheckpointError) as e:
            raise CheckpointError(
                f"model '{label}': {adapter} is a LoRA adapter whose base model {shown(name)} was not found: "
                + (e.message if isinstance(e, CheckpointError) else str(e)),
                hint=f"write it as BASE_MODEL+{label}",
            ) from e

    def locate(self, path: str, revision: str | None) -> Path:
        """A local path, or where the files of a model of the hub are."""
        try:
            local = Path(path).expanduser()
            if local.exists():
                return local
            if local.is_symlink():
                raise CheckpointError(
                    f"model '{path}' is a link that leads nowhere, to {local.readlink()}",
                    hint="the folder or file that it led to was moved or removed, or is the link itself",
                )
        except (OSError, RuntimeError) as e:  # the name is too long, may not be looked at, or `~nobody`
            reason = e.strerror if isinstance(e, OSError) else str(e)
            raise CheckpointError(
                f"model '{path}' cannot be opened: {reason}", hint="check the path in the recipe"
            ) from e
        near = _near(local)
        if _HUB_ID.fullmatch(path):
            try:
                return self._from_hub(path, revision, None)
            except CheckpointError as e:
                if near:
                    raise CheckpointError(e.message, hint=f"{near} {e.hint}") from e
                raise
        if match := _HUB_FILE.fullmatch(path):
            return self._from_hub(match["repo"], revision, match["file"])
        hint = f"looked for {local.absolute()}; check the path in the recipe"
        if _HUB_PAGE.match(path):
            hint = f"write {'/'.join(_HUB_PAGE.sub('', path).split('/')[:2])}"
        elif _OF_WINDOWS.match(path) and os.name != "nt":
            hint = "that is a path of Windows; here folders are named like /home/you/models/name"
        elif not re.search(r"[/\\]", path):
            hint += "; a model of the Hugging Face Hub is written org/name"
        raise CheckpointError(f"model '{path}' does not exist", hint=f"{near} {hint}".lstrip())

    def _from_hub(self, repo: str, revision: str | None, file: str | None) -> Path:
        if not self._headers_only:
            from meldkit.checkpoint.hub import download

            return download(repo, revision, self._cache, file)
        from meldkit.checkpoint.stand_in import locate_heads

        found = locate_heads(repo, revision, self._cache, file)
        self.absent |= found.absent
        self.notes += found.notes
        return found.path


def may_be_on_hub(path: str) -> bool:
    """Whether a path could be that of a model of the Hugging Face Hub, or of a file of one."""
    return bool(_HUB_ID.fullmatch(path) or _HUB_FILE.fullmatch(path))


def _near(path: Path) -> str:
    """The question whether a folder of nearly that name was meant; "" if there is none."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except (OSError, ValueError):
        return ""
    meant = nearest(path.name, names)
    return "" if meant is None else f"did you mean '{path.parent / meant}'?"

"""Models of the Hugging Face Hub: the files that a merge needs are downloaded into the hub's own cache."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from meldkit.checkpoint.json_file import shown
from meldkit.checkpoint.weights import WEIGHTS
from meldkit.errors import CheckpointError

#: The same weights in several formats: the first one that there is, alone or in parts that an index lists.
_MODELS = ("model.safetensors", "pytorch_model.bin")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_INDEX = ".index.json"
#: What goes with weights: configuration, tokenizer, templates, code; and what must be passed on.
_SIDE = (
    *(".json", ".txt", ".model", ".jinja", ".py"),
    *(".tiktoken", ".vocab", ".bpe", ".merges", ".spm", ".codes"),
)
_LICENSES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_CARD = "README.md"
#: Lists the parts of a sentence-transformers model, with their folders.
_PARTS = "modules.json"
_HINT = "check the spelling, your connection, and HF_TOKEN for private or gated models"


@dataclass(frozen=True, slots=True)
class Located:
    """Where the files of a model lie.

    Attributes:
        path: its folder, or the one file that is meant.
        absent: weight files of which only the heads are here, the rest holes; with their sizes in bytes.
        notes: what went otherwise than usual, in words.
    """

    path: Path
    absent: Mapping[Path, int] = field(default_factory=dict[Path, int])
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Repository:
    """A model of the hub.

    HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT and HF_HOME are honoured.

    Attributes:
        name: organisation/name.
        revision: branch, tag or commit; None for the default branch.
        cache: where downloads are kept; None for the hub's own cache.
    """

    name: str
    revision: str | None
    cache: Path | None

    def look_up(self) -> tuple[str, list[str]]:
        """The commit that is meant, and the names of its files."""
        from huggingface_hub import HfApi

        info = HfApi().model_info(self.name, revision=self.revision)
        return info.sha or "", [sibling.rfilename for sibling in info.siblings or []]

    def fetch(self, names: Sequence[str], *, local: bool = False) -> Path:
        """The folder of a snapshot with such files in it; only what is in the cache if `local`."""
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

        return Path(
            snapshot_download(
                self.name,
                revision=self.revision,
                cache_dir=self.cache,
                allow_patterns=[glob.escape(name) for name in names],
                local_files_only=local,
            )
        )

    def read(self, name: str) -> Any:
        """What a JSON file says; None if it is not JSON."""
        return parsed(self.fetch([name]) / name)

    def cached(self, file: str | None = None) -> Path | None:
        """The snapshot that an earlier run left, for when the hub does not answer; None if there is none."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = self.fetch([file] if file else ["config.json", "adapter_config.json"], local=True)
        except LocalEntryNotFoundError:
            return None
        if file:
            return folder if (folder / file).exists() else None
        # Planning fetches everything but the weights.
        return folder if any(path.name.endswith(WEIGHTS) for path in folder.rglob("*")) else None

    def snapshot(self, commit: str) -> Path:
        """Where the files of a commit are downloaded to."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        base = Path(self.cache or constants.HF_HUB_CACHE).expanduser().resolve()
        return base / repo_folder_name(repo_id=self.name, repo_type="model") / "snapshots" / commit

    @contextmanager
    def failures(self) -> Generator[None]:
        """Tell of every failure of the hub's client in one way.

        Raises:
            CheckpointError: there is no such model, or the hub cannot be reached.
        """
        try:
            yield
        except failures() as e:
            raise CheckpointError(
                f"model '{self.name}' is neither a local path nor to be had from the Hugging Face Hub: "
                + _reason(e, self.revision, self.cache),
                hint=_hint(e, self.name),
            ) from e


def failures() -> tuple[type[Exception], ...]:
    """Everything that the hub's client raises where the network, the hub or the user is to blame."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Among its bases is the error of the HTTP library, which differs between versions of the hub's client.
    return (OSError, HFValidationError, *cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__))


def download(repo: str, revision: str | None, cache: Path | None, file: str | None = None) -> Path:
    """The folder of a model's files, or the path of one of them; what is in the cache is not fetched again.

    Without a connection the cache must do.

    Args:
        repo: organisation/name.
        revision: branch, tag or commit; None for the default branch.
        cache: where downloads are kept; None for the hub's own cache.
        file: the one weight file that is meant; None for the usual ones.

    Raises:
        CheckpointError: there is no such model, it has no weights, or the hub cannot be reached.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    repository = Repository(repo, revision, cache)
    with repository.failures():
        try:
            _, names = repository.look_up()
        except failures() as e:
            if isinstance(e, RevisionNotFoundError) or (found := repository.cached(file)) is None:
                raise
            folder = found
        else:
            folder = repository.fetch(needed(repo, names, repository.read, file))
    return folder / file if file else folder


def parsed(path: Path) -> Any:
    """What a JSON file says; None if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def needed(repo: str, names: Sequence[str], read: Callable[[str], Any], file: str | None = None) -> list[str]:
    """Which files of a repository a merge needs: one copy of the weights, and what is not weights.

    Args:
        repo: for messages.
        names: all its files.
        read: gives the content of a JSON file, None if it is not JSON.
        file: the one weight file that is meant; None for the usual ones.

    Raises:
        CheckpointError: there are no weights that could be meant.
    """
    if file is not None:
        if file not in names:
            others = [name for name in names if name.endswith(PurePosixPath(file).suffix)]
            raise CheckpointError(
                f"model '{repo}' on the Hugging Face Hub has no file {shown(file)}",
                hint="it has " + ", ".join(others[:5]) if others else "check the spelling",
            )
        weights = _whole(file, names)
    else:
        weights = list(_weights(names, read))
        weights += [next(name for name in _ADAPTERS if name in names)] if set(_ADAPTERS) & set(names) else []
    if not weights:
        raise _no_weights(repo, names)
    # A GGUF file holds configuration and tokenizer too.
    side = [] if file is not None and file.endswith(".gguf") else _side(names, _parts(names, read))
    # The card tells what an adapter's base was made of.
    return list(dict.fromkeys([*weights, *side, *(name for name in (_CARD,) if name in names)]))


def _weights(names: Sequence[str], read: Callable[[str], Any]) -> Iterator[str]:
    for name in _MODELS:
        if name in names:
            yield name
            return
        if name + _INDEX in names:
            yield name + _INDEX
            index = read(name + _INDEX)
            listed = index.get("weight_map") if isinstance(index, dict) else None  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
            files = cast("dict[str, object]", listed).values() if isinstance(listed, dict) else ()
            # What it lists and the repository lacks is said when the folder is opened.
            yield from dict.fromkeys(file for file in files if isinstance(file, str) and file in names)
            return


def _no_weights(repo: str, names: Sequence[str]) -> CheckpointError:
    others = [name for name in names if name.endswith(WEIGHTS)]
    if not others:
        return CheckpointError(
            f"model '{repo}' on the Hugging Face Hub has no weights", hint="check the spelling"
        )
    return CheckpointError(
        f"model '{repo}' on the Hugging Face Hub has neither {' nor '.join(_MODELS)}, "
        f"but {', '.join(others[:5])}{' …' * (len(others) > 5)}",
        hint=f"name the file that is meant: {repo}/{others[0]}",
    )


def _side(names: Sequence[str], parts: set[str]) -> list[str]:
    """Files that are not weights; folders that hold weights are other models or formats, except for parts."""
    foreign = {PurePosixPath(name).parts[0] for name in names if "/" in name and name.endswith(WEIGHTS)}
    chosen: list[str] = []
    for name in names:
        path = PurePosixPath(name)
        top = path.parts[0] if "/" in name else ""
        if top in parts:
            twin = name.removesuffix("pytorch_model.bin") + "model.safetensors"
            if twin == name or twin not in names:
                chosen.append(name)
        elif top in foreign or name.endswith(_INDEX):
            continue
        elif name.endswith(_SIDE) or path.name.upper().startswith(_LICENSES):
            chosen.append(name)
    return chosen


def _parts(names: Sequence[str], read: Callable[[str], Any]) -> set[str]:
    listed = read(_PARTS) if _PARTS in names else None
    entries = cast("list[object]", listed) if isinstance(listed, list) else []
    paths = [cast("dict[str, object]", entry).get("path") for entry in entries if isinstance(entry, dict)]
    return {PurePosixPath(path).parts[0] for path in paths if isinstance(path, str) and path.strip("/.")}


def _whole(file: str, names: Collection[str]) -> list[str]:
    """All files of the model that a file is, or is a part of."""
    if not file.endswith(".gguf"):
        return [file]
    from meldkit.checkpoint.gguf import part_names

    return [name for name in part_names(file) if name in names]


def _reason(error: Exception, revision: str | None, cache: Path | None) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled):
        what = f"its revision {shown(revision)}" if revision else "it"
        return f"HF_HUB_OFFLINE is set, and {what} is not in {cache or constants.HF_HUB_CACHE}"
    if isinstance(error, GatedRepoError):
        return "access to it must be asked for"
    if isinstance(error, RepositoryNotFoundError):
        return "it does not exist, or is private"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {shown(revision)}"
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _hint(error: Exception, repo: str) -> str:
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RevisionNotFoundError

    if isinstance(error, OfflineModeIsEnabled):
        return (
            "unset HF_HUB_OFFLINE to download it, or name the folder that it was downloaded to with "
            "--transformers-cache or HF_HOME"
        )
    if isinstance(error, GatedRepoError):
        return f"ask for access at https://huggingface.co/{repo}, and set HF_TOKEN to a token of yours"
    if isinstance(error, RevisionNotFoundError):
        return "check the spelling; a revision is a branch, a tag or a whole commit hash"
    return _HINT

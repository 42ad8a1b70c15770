"""Models of the hub from the heads of their files: enough to plan with, without a download.

A *stand-in* is a folder that looks like the model's. Configuration, tokenizer and whatever else is small lie
in the hub's own cache, and are links here. So are weight files that are there already. The others have their
real size, but only the head, which is fetched by ranges, is filled: the rest is a hole that takes no space.

    headers/ORG--NAME/refs/REVISION        the commit that a branch or tag was last
    headers/ORG--NAME/COMMIT.json          the names of all files of that commit
    headers/ORG--NAME/COMMIT/…             the stand-in

What a commit holds never changes, so nothing is fetched twice.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from meldkit.checkpoint.heads import FIRST, fetch_head
from meldkit.checkpoint.hub import Located, Repository, failures, needed, parsed
from meldkit.checkpoint.ranges import NoRangesError, RemoteFile
from meldkit.checkpoint.weights import WEIGHTS

#: Files whose heads are fetched at the same time.
_PARALLEL = 8
_MAIN = "main"
#: What an entry in the header of a safetensors file takes besides the tensor's name, and all else there.
_ENTRY, _REST = 110, 1 << 10
_INDEX = ".index.json"


def locate_heads(repo: str, revision: str | None, cache: Path | None, file: str | None = None) -> Located:
    """The folder of a model, or the path of its file, of which nothing need be here but the heads.

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
    kept = _Kept(_root(repo, cache))
    with repository.failures():
        try:
            commit, names = repository.look_up()
        except failures() as e:
            earlier = _left_by_earlier_runs(repository, kept, file)
            if isinstance(e, RevisionNotFoundError) or earlier is None:
                raise
            found = earlier
        else:
            found = _StandIn(repository, kept, commit, names).made(file)
    if file is None:
        return found
    return Located(found.path / file, found.absent, found.notes)


def _root(repo: str, cache: Path | None) -> Path:
    from huggingface_hub import constants

    base = cache / ".meldkit" if cache else Path(constants.HF_ASSETS_CACHE) / "meldkit"
    return base / "headers" / repo.replace("/", "--")


def _left_by_earlier_runs(repository: Repository, kept: _Kept, file: str | None) -> Located | None:
    """A whole model in the hub's cache, else its heads."""
    whole = repository.cached(file)
    if whole is not None:
        names = kept.names(whole.name)
        chosen = needed(repository.name, names, lambda name: parsed(whole / name), file) if names else ()
        if all((whole / name).exists() for name in chosen):
            return Located(whole)
    commit = kept.commit(repository.revision or _MAIN)
    folder, names = kept.folder(commit), kept.names(commit)
    if names:
        chosen = needed(repository.name, names, lambda name: parsed(folder / name), file)
        if all((folder / name).exists() for name in chosen):
            return Located(folder, _absent(folder, chosen))
    return Located(whole) if whole else None


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is remembered of a repository."""

    root: Path

    def folder(self, commit: str) -> Path:
        return self.root / commit

    def commit(self, revision: str) -> str:
        """What a revision was last; itself if it is unknown."""
        try:
            return (self.root / "refs" / revision).read_text("utf-8")
        except OSError:
            return revision

    def names(self, commit: str) -> list[str]:
        """The files of a commit; none if it is unknown."""
        try:
            return cast("list[str]", json.loads((self.root / f"{commit}.json").read_bytes()))
        except (OSError, ValueError):
            return []

    def remember(self, revision: str, commit: str, names: Sequence[str]) -> None:
        for path, content in (
            (self.root / "refs" / revision, commit),
            (self.root / f"{commit}.json", json.dumps(names)),
        ):
            _replace(path, lambda new, content=content: new.write_text(content, "utf-8"))


class _StandIn:
    """One commit of a repository."""

    def __init__(self, repository: Repository, kept: _Kept, commit: str, names: Sequence[str]) -> None:
        # By its hash, there is nothing to look up again, and nothing that could have changed.
        self._repository = replace(repository, revision=commit)
        self._revision = repository.revision or _MAIN
        self._kept = kept
        self._commit = commit
        self._names = names
        self._folder = kept.folder(commit)
        self._snapshot = repository.snapshot(commit)

    def made(self, file: str | None) -> Located:
        """Have everything here that planning reads."""
        chosen = needed(self._repository.name, self._names, self._read, file)
        side = [name for name in chosen if not name.endswith(WEIGHTS)]
        self._fetch(side)
        absent = [name for name in chosen if not (self._snapshot / name).exists()]
        if not absent:
            return Located(self._snapshot)
        why = ""
        try:
            whole = self._fetch_heads(absent)
            if whole:
                why = f"the format of {', '.join(whole)} has no head"
        except NoRangesError:
            whole = absent
            why = "its server sends whole files only"
        notes = (f"model '{self._repository.name}' is downloaded to plan: {why}",) if why else ()
        self._fetch(whole)
        if len(whole) == len(absent):
            return Located(self._snapshot, notes=notes)
        for name in chosen:
            if (self._snapshot / name).exists():
                _link(self._folder / name, self._snapshot / name)
        self._kept.remember(self._revision, self._commit, self._names)
        return Located(self._folder, _absent(self._folder, chosen), notes)

    def _fetch(self, names: Sequence[str]) -> None:
        """Have files in the hub's cache; it is not asked for those that are there."""
        if any(not (self._snapshot / name).exists() for name in names):
            self._repository.fetch(names)

    def _read(self, name: str) -> Any:
        self._fetch([name])
        return parsed(self._snapshot / name)

    def _fetch_heads(self, names: Sequence[str]) -> list[str]:
        """Lay the heads of files, if they are not laid yet; the names of those that have none."""
        missing = [name for name in names if not (self._folder / name).is_file()]
        lengths = self._lengths()
        pool = ThreadPoolExecutor(_PARALLEL)
        try:
            done = pool.map(self._fetch_head, missing, [lengths.get(name, FIRST) for name in missing])
            return [name for name, found in zip(missing, done, strict=True) if not found]
        finally:
            pool.shutdown(cancel_futures=True)

    def _lengths(self) -> dict[str, int]:
        """About how long the heads of shards are, by the number of tensors that an index places in them."""
        lengths: dict[str, int] = {}
        for index in (name for name in self._names if name.endswith(".safetensors" + _INDEX)):
            path = self._snapshot / index
            says = parsed(path) if path.exists() else None
            listed = cast("dict[str, Any]", says).get("weight_map") if isinstance(says, dict) else None
            for tensor, file in cast("dict[str, object]", listed if isinstance(listed, dict) else {}).items():
                if not isinstance(file, str):
                    continue
                lengths[file] = lengths.get(file, _REST) + len(tensor) + _ENTRY
        return lengths

    def _fetch_head(self, name: str, length: int) -> bool:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self._repository.name, name, revision=self._commit)

        def lay(path: Path) -> None:
            with RemoteFile(url, path, length) as remote:
                if not fetch_head(remote, Path(name)):
                    raise _NoHeadError

        try:
            _replace(self._folder / name, lay)
        except _NoHeadError:
            return False
        return True


class _NoHeadError(Exception):
    """What planning reads is all over the file."""


def _absent(folder: Path, names: Sequence[str]) -> dict[Path, int]:
    """Of the weight files in a stand-in, those that are no links to whole ones, with their sizes."""
    paths = [folder / name for name in names if name.endswith(WEIGHTS)]
    return {path: path.stat().st_size for path in paths if not path.is_symlink()}


def _link(path: Path, target: Path) -> None:
    if not path.is_symlink() or path.readlink() != target.absolute():

        def link(new: Path) -> None:
            new.unlink()
            new.symlink_to(target.absolute())

        _replace(path, link)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file in one stroke: others see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    os.close(fd)
    new = Path(name)
    try:
        write(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)

"""The journal says what was entered, up to the first thing that cannot be believed, and has one writer."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meldkit.errors import OutputError, RunError
from meldkit.output import journal
from meldkit.output.journal import Entries, Journal, read_journal

NAMES = st.text(max_size=4) | st.sampled_from(["lm_head.weight", "a\nb", '"', "é"])
#: Names of files that lie in the folder itself.
FILES = st.sampled_from(["model.safetensors", "config.json", "…", ".hidden", "a b", "..."])
SUMS = st.lists(st.sampled_from(["0" * 32, "f" * 32, "…"]), max_size=2)
DONE = st.lists(st.tuples(NAMES, st.booleans(), SUMS), max_size=3)
STEPS = st.lists(
    st.tuples(st.just("done"), DONE) | st.tuples(st.just("publish"), st.lists(FILES, max_size=3)), max_size=5
)
#: Lines that mean nothing where they stand: no JSON, no entry, another's plan, files outside of the folder.
NONSENSE = [
    *(b"", b"{", b"\xff", b"[" * 100_000, b"null", b"[]", b"3", b'"done"', b"{}", b'{"done": 3}'),
    *(b'{"plan": "again"}', b'{"plan": 1}', b'{"publish": "a"}', b'{"publish": null}', b'{"Done": "a"}'),
    *(b'{"publish": [""]}', b'{"publish": [".."]}', b'{"publish": ["."]}', b'{"publish": ["a/b"]}'),
    *(b'{"publish": ["/etc/passwd"]}', b'{"publish": ["../x"]}', b'{"publish": [3]}'),
    *(b'{"publish": ["a", "../x"]}', b'{"publish": ["../x", "a"]}', b'{"publish": [null, "a"]}'),
]
Steps = Sequence[tuple[str, Sequence[Any]]]


def expected(plan: str, steps: Steps) -> Entries:
    """What a journal must say in which these steps were entered; its length is not known."""
    done = [entry for kind, entries in steps if kind == "done" for entry in entries]
    published = [tuple(files) for kind, files in steps if kind == "publish"]
    return Entries(
        plan,
        {name: tuple(sums) for name, _, sums in done},
        frozenset(name for name, finite, _ in done if not finite),
        published[-1] if published else (),
    )


def stored(*entries: bytes) -> bytes:
    """A journal of these lines: before each stands the CRC-32 of it and of all before it."""
    raw, total = b"", 0
    for entry in entries:
        line = b"%08x %s\n" % (zlib.crc32(entry, total), entry)
        raw += line
        total = zlib.crc32(line, total)
    return raw


def enter(writer: Journal, steps: Steps) -> None:
    for kind, values in steps:
        if kind == "publish":
            writer.publish(values)
        else:
            # A name may be entered twice, once finite and once not: that is two entries.
            for name, finite, sums in values:
                writer.done({name: sums}, () if finite else [name])


def without_length(entries: Entries) -> tuple[Any, ...]:
    return entries.plan, entries.done, entries.nonfinite, entries.publish


def num_open() -> int:
    """How many files this process has open."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "within" / "journal"


@settings(deadline=None)
@given(STEPS)
def test_says_what_was_entered(steps: Steps) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        writer = Journal(path, Path("out"))
        writer.restart("plan")
        enter(writer, steps)
        found = read_journal(path)
        assert without_length(found) == without_length(expected("plan", steps))
        assert found.length == path.stat().st_size
        # A new beginning forgets it all.
        writer.restart("other")
        assert without_length(read_journal(path)) == without_length(expected("other", []))
        writer.close()


@settings(deadline=None)
@given(STEPS, st.data())
def test_of_a_torn_journal_whole_lines_count(steps: Steps, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        writer = Journal(path, Path("out"))
        writer.restart("plan")
        enter(writer, steps)
        writer.close()
        raw = path.read_bytes()
        path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
        torn = read_journal(path)
        assert raw[: torn.length].endswith(b"\n") or torn == Entries()
        path.write_bytes(raw[: torn.length])
        assert read_journal(path) == torn


SOUND = (
    b'{"plan": "p"}',
    b'{"done": "a", "sums": ["1", "2"]}',
    b'{"done": "b", "sums": ["3"], "finite": false}',
    b'{"publish": ["f"]}',
)
SAID = Entries("p", {"a": ("1", "2"), "b": ("3",)}, frozenset("b"), ("f",), len(stored(*SOUND)))


@pytest.mark.parametrize("line", NONSENSE)
def test_nonsense_and_all_after_it_count_for_nothing(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(stored(*SOUND, line, b'{"done": "c"}', b'{"publish": []}'))
    assert read_journal(path) == SAID
    # The same without its sum.
    path.write_bytes(stored(*SOUND) + line + b"\n")
    assert read_journal(path) == SAID


@given(st.data())
@settings(deadline=None)
def test_damage_counts_for_nothing_and_so_does_what_follows(data: st.DataObject) -> None:
    """A byte is another one, or a line is lost, doubled or in another place: the lines before it count."""
    lines = stored(*SOUND, b'{"done": "c"}').splitlines(keepends=True)
    where = data.draw(st.integers(0, len(lines) - 1))
    how = data.draw(st.sampled_from(["byte", "lost", "doubled", "last"]))
    damaged = list(lines)
    if how == "byte":
        at = data.draw(st.integers(0, len(lines[where]) - 1))
        other = bytearray(lines[where])
        other[at] ^= data.draw(st.integers(1, 255))
        damaged[where] = bytes(other)
    elif how == "doubled":
        damaged.insert(where, lines[where])
        where += 1
    else:
        taken = damaged.pop(where)
        damaged += [taken] if how == "last" else []
    with TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        path.write_bytes(b"".join(lines[:where]))
        before = read_journal(path)
        assert before.length == len(b"".join(lines[:where]))
        path.write_bytes(b"".join(damaged))
        # To lose the last line, or to put it last, is no damage that could be seen.
        seen = damaged != lines[: len(damaged)]
        assert read_journal(path) == before if seen else read_journal(path).length == len(b"".join(damaged))


@pytest.mark.parametrize("more", [{"finite": True}, {"finite": None}, {"finite": False, "more": 1}, {"x": 1}])
def test_only_what_is_said_not_to_be_finite_is_not(tmp_path: Path, more: dict[str, Any]) -> None:
    path = tmp_path / "journal"
    path.write_bytes(stored(b'{"plan": "p"}', json.dumps({"done": "a", **more}).encode()))
    found = read_journal(path)
    assert (found.done, found.nonfinite) == ({"a": ()}, set())


@pytest.mark.parametrize(
    ("text", "sums"),
    [
        ("", ()),
        (', "sums": []', ()),
        (', "sums": "ab"', ()),
        (', "sums": {"a": 1}', ()),
        (', "sums": [1]', ("1",)),
    ],
)
def test_sums_that_are_none(tmp_path: Path, text: str, sums: tuple[str, ...]) -> None:
    """They are those of no tensor, so that it counts as damaged; what follows counts."""
    path = tmp_path / "journal"
    path.write_bytes(
        stored(b'{"plan": "p"}', b'{"done": "a"%s, "finite": false}' % text.encode(), b'{"publish": ["f"]}')
    )
    found = read_journal(path)
    assert (found.done, found.nonfinite, found.publish) == ({"a": sums}, {"a"}, ("f",))


@pytest.mark.parametrize("line", ['{"done": "a"}', '{"publish": ["f"]}', '{"publish": []}', '{"plan": ""}'])
def test_without_a_plan_nothing_counts(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal"
    path.write_bytes(stored(line.encode(), b'{"done": "b"}'))
    found = read_journal(path)
    assert (found.done, found.publish) == ({}, ())
    assert not found.plan


def test_no_journal_says_nothing(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "journal") == Entries("", {}, frozenset(), (), 0)
    assert read_journal(tmp_path) == Entries()


def test_many_names_at_once(place: Path) -> None:
    names = [f"layers.{i}.weight" for i in range(10_000)]
    writer = Journal(place, Path("out"))
    writer.restart("p")
    writer.done({name: [name] for name in names}, set(names[::7]))
    writer.close()
    found = read_journal(place)
    assert (found.done, found.nonfinite) == ({name: (name,) for name in names}, set(names[::7]))


def test_what_is_entered_is_durable_on_return(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synchronised last, with all of it written, however little one call writes."""
    write, synced = os.write, list[int]()
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    monkeypatch.setattr(journal, "sync_data", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    writer = Journal(place, Path("out"))
    sizes: list[int] = []
    for call in (
        lambda: writer.restart("p"),
        lambda: writer.done({"a": ["1"], "b": ["2"]}),
        lambda: writer.publish(["f", "g"]),
    ):
        call()
        sizes.append(place.stat().st_size)
    assert synced == sizes
    assert read_journal(place).publish == ("f", "g")
    writer.close()


def test_has_one_writer(place: Path) -> None:
    writer = Journal(place, Path("out"))
    open_files = num_open()
    with pytest.raises(OutputError) as caught:
        Journal(place, Path("other/out"))
    assert str(caught.value) == (
        "another merge is writing to other/out\n  wait until it has finished, or name another folder"
    )
    assert num_open() == open_files
    writer.close()
    writer.close()
    assert num_open() == open_files - 1
    Journal(place, Path("out")).close()


@pytest.mark.parametrize(
    ("code", "refused"), [(errno.EACCES, True), (errno.ENOLCK, False), (errno.EOPNOTSUPP, False)]
)
def test_only_a_lock_that_is_held_is_a_reason_to_refuse(
    place: Path, monkeypatch: pytest.MonkeyPatch, code: int, refused: bool
) -> None:
    """Some systems say EACCES for a lock that is held; some network file systems know no locks."""

    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    if refused:
        with pytest.raises(OutputError):
            Journal(place, Path("out"))
    else:
        writer = Journal(place, Path("out"))
        writer.restart("p")
        writer.close()
        assert read_journal(place).plan == "p"


def test_close_gives_back_descriptor_0_too(place: Path) -> None:
    """A process without standard input opens its first file there."""
    kept = os.dup(0)
    try:
        os.close(0)
        Journal(place, Path("out")).close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_another_journal_of_the_same_name(place: Path) -> None:
    """Who removed the folder between opening and locking leaves an open file that nobody sees."""
    writer = Journal(place, Path("out"))
    assert writer.in_place() is True
    writer.check()
    place.rename(place.with_name("moved"))
    assert writer.in_place() is False
    place.touch()
    assert writer.in_place() is False
    with pytest.raises(RunError) as caught:
        writer.check()
    assert caught.value.hint == "run the same command again"
    writer.close()


def test_a_journal_that_was_lost_while_locking_is_opened_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, losses = fcntl.flock, iter([True, True, False])

    def lose(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        if next(losses):
            place.unlink()
            place.parent.rmdir()

    monkeypatch.setattr(fcntl, "flock", lose)
    open_files = num_open()
    writer = Journal(place, Path("out"))
    assert writer.in_place()
    assert num_open() == open_files + 1
    writer.close()


def test_stays_locked_and_known_when_it_is_moved(place: Path) -> None:
    writer = Journal(place, Path("out"))
    writer.restart("p")
    moved = place.parent.parent / "moved"
    writer.move(moved)
    assert (writer.path, writer.in_place(), place.exists()) == (moved, True, False)
    writer.done({"a": ["1"]})
    assert read_journal(moved).done == {"a": ("1",)}
    with pytest.raises(OutputError):
        Journal(moved, Path("out"))
    writer.close()


def test_others_may_read_and_not_write(place: Path) -> None:
    mask = os.umask(0)
    try:
        Journal(place, Path("out")).close()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(place.stat().st_mode) == 0o644


def test_is_kept_and_cut_where_it_ends_to_make_sense(place: Path) -> None:
    writer = Journal(place, Path("out"))
    writer.restart("p")
    writer.done({"a": ["1"]})
    writer.close()
    with place.open("ab") as file:
        file.write(b'{"done": "b')
    again = Journal(place, Path("out"))
    again.cut(read_journal(place).length)
    again.done({"c": ["2", "3"]})
    again.close()
    assert place.read_bytes() == stored(
        b'{"plan": "p"}', b'{"done": "a", "sums": ["1"]}', b'{"done": "c", "sums": ["2", "3"]}'
    )
    assert read_journal(place).done == {"a": ("1",), "c": ("2", "3")}

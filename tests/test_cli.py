"""The command line: flags, what is printed where, exit statuses."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import command
import tiny
from meldkit.api import Status
from meldkit.cli import display
from meldkit.cli.display import show_progress, show_steps, text_size
from meldkit.errors import RecipeError
from meldkit.methods import METHODS
from meldkit.options import MergeOptions, parse_size
from meldkit.recipe import ADAPTER_METHODS

#: Every option of mergekit-yaml 0.1.5, with a value where it takes one.
# fmt: off
MERGEKIT = [
    "--allow-crimes", "--no-allow-crimes", "--unsafe-truncate-embeddings",
    "--no-unsafe-truncate-embeddings", "--trust-remote-code", "--no-trust-remote-code",
    "--transformers-cache=x", "--lora-merge-cache=x", "--lora-merge-dtype=float16", "--random-seed=7",
    "-v", "--quiet", "--no-quiet", "--cuda", "--no-cuda", "--device=cpu", "--low-cpu-memory",
    "--no-low-cpu-memory", "--lazy-unpickle", "--no-lazy-unpickle", "--read-to-gpu", "--no-read-to-gpu",
    "--multi-gpu", "--no-multi-gpu", "-j2", "--num-threads=2", "--gpu-rich", "--async-write",
    "--no-async-write", "--write-threads=2", "--out-shard-size=1B", "--copy-tokenizer",
    "--no-copy-tokenizer", "--clone-tensors", "--no-clone-tensors", "--write-model-card",
    "--no-write-model-card", "--safe-serialization", "--no-safe-serialization",
]
# fmt: on
REFUSED = {
    "--no-safe-serialization": "not supported: only safetensors files are written",
}
IDLE = {
    *("--lora-merge-cache", "--lora-merge-dtype", "--low-cpu-memory", "--lazy-unpickle", "--read-to-gpu"),
    *("--async-write", "--write-threads", "--clone-tensors"),
}
#: An error where there is none, as in test_device.py.
NEED_GPU = {"--cuda", "--multi-gpu", "--gpu-rich"}


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models a and b and recipe.yml in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        tiny.decoder(tmp_path / name, seed)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"weight": 1},
    }
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    return tmp_path


@pytest.mark.parametrize("flag", MERGEKIT)
def test_every_flag_of_mergekit_is_accepted(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    done = command.run(capsys, "merge", "recipe.yml", "out", flag)
    if flag in NEED_GPU and not torch.cuda.is_available():
        assert done.status == 2
        assert done.err.startswith("error: device: there is no cuda device")
    elif flag in REFUSED:
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith(f"error: {REFUSED[flag]}")
        assert not Path("out").exists()
    else:
        assert (done.status, done.err) == (0, "")
        assert Path("out/config.json").exists()


def test_idle_flags_say_so_once_with_v(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f for f in MERGEKIT if f not in REFUSED and f.split("=")[0] not in ("--quiet", "-v")]
    done = command.run(capsys, "merge", "recipe.yml", "out", "-v", *flags)
    positive = [f for f in flags if f"--no-{f[2:]}" not in flags]
    silent = command.run(capsys, "merge", "recipe.yml", "silent", *positive)
    assert silent.err == ""
    done = command.run(capsys, "merge", "recipe.yml", "loud", "-v", *[f for f in flags if "--no-" not in f])
    said = re.findall(r"^note: (--[a-z-]+) changes nothing: .+$", done.err, re.MULTILINE)
    assert sorted(said) == sorted(IDLE)
    assert len(done.err.splitlines()) == len(IDLE)


def test_options_are_mergekits_in_python_too() -> None:
    names = {f.split("=")[0].removeprefix("--").replace("-", "_") for f in MERGEKIT if f.startswith("--")}
    names = {n for n in names if not n.startswith("no_")}
    assert names <= set(MergeOptions.__dataclass_fields__)


# what is printed


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, "merge", "recipe.yml", "out dir")
    assert (done.status, done.err) == (0, "")
    assert re.fullmatch(
        r"merged 9 tensors, 5 kB, in \d+\.\d s \(\d+ [kM]?B/s\), "
        r"peak memory (\d+ MB|\d\.\d\d GB)\n"
        r"checked: 9 tensors \(shapes, types, all finite\), config\n"
        r"written to out dir\n"
        r"try it: python -c \"from transformers import AutoModel; "
        r"print\(AutoModel\.from_pretrained\('out dir'\)\)\"\n",
        done.out,
    )


@pytest.mark.parametrize("kind", ["causal", "encoder", "bare", "quoted"])
def test_next_command_works(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    out = {"quoted": 'it\'s "$HOME"'}.get(kind, "out")
    if kind == "bare":
        Path("a/config.json").unlink()
        Path("b/config.json").unlink()
    elif kind == "causal":
        (Path("a") / "tokenizer.json").write_text("{}")
    else:
        tiny.bert(Path("a"), 1)
        tiny.bert(Path("b"), 2)
    done = command.run(capsys, "merge", "recipe.yml", out)
    line = done.out.splitlines()[-1].removeprefix("try it: ")
    if kind == "causal":
        assert line == (
            'python -c "from transformers import pipeline; '
            "print(pipeline('text-generation', 'out')('Hello')[0]['generated_text'])\""
        )
        return
    code = subprocess.run(
        ["bash", "-c", line.replace("python -c", "printf %s")], capture_output=True, text=True, check=True
    ).stdout
    exec(code)
    assert ("model.norm.weight" if kind == "bare" else "BertModel") in capsys.readouterr().out


def test_quiet_prints_nothing_but_errors(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("recipe.yml").read_text()
    Path("recipe.yml").write_text(text.replace('"weight": 1', '"weight": 1, "t": 1'))
    done = command.run(capsys, "merge", "recipe.yml", "out", "--quiet")
    assert (done.status, done.out, done.err) == (0, "", "")
    done = command.run(capsys, "merge", "recipe.yml", "out", "--quiet")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: out is not empty")


def test_warnings_and_notes_come_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    ids = {f"model.ids.{letter}": torch.arange(3) for letter in "abcde"}
    for name in ("a", "b"):
        tiny.decoder(Path(name), 1, extra=ids)
    text = Path("recipe.yml").read_text()
    Path("recipe.yml").write_text(text.replace('"weight": 1', '"weight": 1, "t": 1'))
    done = command.run(capsys, "merge", "recipe.yml", "out")
    assert done.err == (
        "warning: recipe.yml:1: 't' has no effect: linear does not use it; slerp, nearswap would\n"
        "note: model.ids.a: I64, copied from 'a'\n"
        "note: model.ids.b: I64, copied from 'a'\n"
        "note: model.ids.c: I64, copied from 'a'\n"
        "note: 2 more like these; -v lists them\n"
    )
    done = command.run(capsys, "merge", "recipe.yml", "again", "-v")
    assert done.err.count("note: model.ids.") == 5


def test_lines_instead_of_a_bar_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(100.0, 2.0)
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    with show_progress(enabled=True) as update:
        assert update is not None
        for done in range(5):
            update(Status(done * 10**9, 4 * 10**9, f"layer.{done}"))
    assert capsys.readouterr().err == " 50%  2.00 GB of 4.00 GB  333 MB/s  6 s left  layer.2\n"


@pytest.mark.parametrize("total", [0, 1])
def test_progress_of_nothing(total: int) -> None:
    with show_progress(enabled=True) as update:
        assert update is not None
        update(Status(0, total, ""))


def test_bar_on_a_terminal(models: Path) -> None:
    main, terminal = pty.openpty()
    tiny.stored(models / "a", {f"w{i}": torch.ones(2**20) for i in range(20)})
    recipe = {
        "merge_method": "ties",
        "base_model": "a",
        "models": [{"model": "a"}, {"model": "a"}, {"model": "a"}],
    }
    Path("recipe.yml").write_text(json.dumps({**recipe, "parameters": {"weight": 1, "density": 0.5}}))
    process = subprocess.Popen(
        [command.SCRIPT, "merge", "recipe.yml", "out", "-j1"],
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    seen = b""
    try:
        while chunk := os.read(main, 65536):
            seen += chunk
    except OSError:
        pass  # the other end is closed
    os.close(main)
    assert process.wait() == 0
    text = seen.decode()
    assert "\x1b[" in text
    assert "━" in text
    assert re.search(r"\d+\.\d/167\.8 MB", text)  # read twice
    assert re.search(r"w\d+", text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_400, "999 kB"),
        (999_600, "1 MB"),
        (2.5e9, "2.50 GB"),
        (3e12, "3000.00 GB"),
    ],
)
def test_sizes_in_words(size: float, text: str) -> None:
    assert text_size(size) == text


# sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5B", 5 * 10**9),
        ("500M", 5 * 10**8),
        ("2GB", 2 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("10k", 10**4),
        (123, 123),
        (" 7 ", 7),
    ],
)
def test_shard_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "B", "5X", "1e3", "0.1", "9" * 400, "٣", None, True])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(RecipeError, match="is not a size"):
        parse_size(text)


# the program


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from meldkit.cli import main\n"
        "try: main({args})\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {{'torch._C', 'numpy', 'transformers', 'pydantic', 'rich', 'safetensors'}}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for args in (["--help"], ["merge", "--help"], ["plan", "-h"], ["methods", "--help"], ["--version"]):
        subprocess.run([sys.executable, "-c", code.format(args=args)], check=True, stdout=subprocess.DEVNULL)
    costs: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([command.SCRIPT, "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) < 0.3


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["merge", "recipe.yml", "out", "--lazy-unpickel"], "--lazy-unpickle'"),
        (["merge", "recipe.yml", "out", "-j", "x"], "'x' is not a valid integer"),
        (["merge", "recipe.yml", "out", "-j", "0"], "num_threads is 0"),
        (["merge", "recipe.yml", "out", "-j", "-2"], "num_threads is -2"),
        (
            ["merge", "recipe.yml", "out", "-j", "100000"],
            "num_threads is 100000\n  it must be from 1 to 1024",
        ),
        (["merge", "recipe.yml", "out", "--write-threads", "0"], "write_threads is 0"),
        (["merge", "recipe.yml", "out", "--out-shard-size", "big"], "'big' is not a size"),
        (["plan", "nowhere.yml"], "cannot read recipe 'nowhere.yml': No such file or directory"),
        (["merge", "nowhere.yml", "out"], "cannot read recipe 'nowhere.yml': No such file or directory"),
        (["plan", "a"], "cannot read recipe 'a': Is a directory"),
        (["methods", "tie"], "unknown merge_method 'tie'"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], args: list[str], text: str) -> None:
    done = command.run(capsys, *args)
    assert (done.status, done.out) == (2, "")
    assert text in done.err
    assert not Path("out").exists()


@pytest.fixture
def piped(tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """Gives the standard input of this process a content."""
    before = os.dup(0)

    def pipe(content: bytes) -> None:
        (tmp_path / "input").write_bytes(content)
        with (tmp_path / "input").open("rb") as f:
            os.dup2(f.fileno(), 0)

    yield pipe
    os.dup2(before, 0)
    os.close(before)


@pytest.mark.parametrize(
    "args", [["merge", "-", "out"], ["plan", "-"], ["pytorch", "-", "out.safetensors"]], ids=lambda a: a[0]
)
def test_recipes_from_standard_input(
    args: list[str], piped: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    piped(Path("recipe.yml").read_bytes())
    done = command.run(capsys, *args)
    assert (done.status, done.err) == (0, "")
    piped(b"merge_method: linear\nmodels: [{model: a}, {model: b}]\nwieght: 1\n")
    done = command.run(capsys, *args, *(["--overwrite"] if len(args) > 2 else []))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: <stdin>:3: unknown key 'wieght' in the recipe\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "<stdin>: the recipe is empty"),
        (b"\xff", "<stdin>: not UTF-8 text: byte 0xff at position 0"),
        (b"#" * (2**24 + 1), "<stdin>: more than 16 MiB is too much for a recipe"),
    ],
    ids=["empty", "not text", "large"],
)
def test_what_is_no_recipe_on_standard_input(
    content: bytes, message: str, piped: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    piped(content)
    done = command.run(capsys, "plan", "-")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")


def test_no_standard_input(piped: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]) -> None:
    piped(b"")
    os.close(0)
    done = command.run(capsys, "plan", "-")
    assert (done.status, done.err) == (2, "error: cannot read recipe '<stdin>': Bad file descriptor\n")


def test_nothing_to_do_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys)
    assert "Commands:" in done.out + done.err


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    done = command.run(capsys, "methods")
    names = [line.split()[0] for line in done.out.splitlines() if not line.startswith(" ")]
    assert names == [*METHODS, *ADAPTER_METHODS]
    assert max(map(len, done.out.splitlines())) <= 80
    listed = json.loads(command.run(capsys, "methods", "--json").out)
    assert [method["name"] for method in listed] == list(METHODS)
    (ties,) = json.loads(command.run(capsys, "methods", "ties", "--json").out)
    assert ties["parameters"][0] | {"doc": ""} == {
        "name": "weight", "doc": "", "kind": "float", "required": True, "default": None, "low": None,
        "high": None, "choices": [], "per_model": True, "start": ties["parameters"][0]["start"],
        "reason": ties["parameters"][0]["reason"],
    }  # fmt: skip
    done = command.run(capsys, "methods", "ties")
    assert (
        "density: Fraction of each task vector's elements to keep. 0 to 1; default 1; model, slice or recipe."
        in done.out
    )
    assert "https://arxiv.org/abs/2306.01708" in done.out
    for name, summary in ADAPTER_METHODS.items():
        assert command.run(capsys, "methods", name).out.startswith(f"{name}: {summary[:20]}")
        assert json.loads(command.run(capsys, "methods", name, "--json").out)[0]["summary"] == summary


def test_an_error_of_ours_is_not_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import meldkit.api as api

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(api, "plan", broken)
    with pytest.raises(ZeroDivisionError):
        command.run(capsys, "plan", "recipe.yml")


def test_stopped_while_planning(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import meldkit.api as api

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "plan", stopped)
    done = command.run(capsys, "plan", "recipe.yml")
    assert (done.status, done.out, done.err.strip()) == (4, "", "stopped")


def test_steps_tell_how_long_the_rest_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with show_steps(enabled=True) as progress:
        assert progress is not None
        for done in range(4):
            progress(done, 3, f"model {done}")
            time.sleep(0.05)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "1 of 3: model 0"
    assert re.fullmatch(r"2 of 3: model 1, about 0\.\d+ s left", second)
    assert re.fullmatch(r"3 of 3: model 2, about 0\.\d+ s left", third)

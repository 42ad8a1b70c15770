"""What the command line says to those who mistype: word for word, with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import command
import tiny

#: Command line → message and hint.
CASES = {
    "frobnicate": (
        "unknown command 'frobnicate'",
        "meldkit --help lists the commands",
    ),
    "mrege recipe.yml out": ("unknown command 'mrege'", "did you mean 'merge'?"),
    "recipe.yml": (
        "unknown command 'recipe.yml'",
        "meldkit merge recipe.yml OUT, or meldkit plan recipe.yml to see what it would do",
    ),
    "--frob": ("meldkit has no option '--frob'", "meldkit --help lists the options"),
    "merge": ("RECIPE is missing", "meldkit merge RECIPE OUT"),
    "merge recipe.yml": ("OUT is missing", "meldkit merge RECIPE OUT"),
    "plan": ("RECIPE is missing", "meldkit plan RECIPE"),
    "inspect": ("MODEL is missing", "meldkit inspect MODEL"),
    "completion": ("SHELL is missing", "meldkit completion SHELL"),
    "completion tcsh": (
        "SHELL: 'tcsh' is not one of 'bash', 'zsh', 'fish'",
        "meldkit completion --help explains it",
    ),
    "merge recipe.yml out more": ("unexpected extra argument (more)", "meldkit merge RECIPE OUT"),
    "merge recipe.yml out --overwrit": (
        "meldkit merge has no option '--overwrit'",
        "did you mean '--overwrite'?",
    ),
    "merge recipe.yml out --density 0.5": (
        "meldkit merge has no option '--density'",
        "density is a parameter; write it under 'parameters:' in the recipe",
    ),
    "plan recipe.yml --xyz": (
        "meldkit plan has no option '--xyz'",
        "meldkit plan --help lists the options",
    ),
    "merge recipe.yml out -j x": (
        "--num-threads, -j: 'x' is not a valid integer",
        "meldkit merge --help explains it",
    ),
    "merge recipe.yml out --random-seed": (
        "--random-seed needs a value",
        "write it after the option: --random-seed VALUE",
    ),
    "merge out recipe.yml": ("'recipe.yml' is a recipe, and OUT comes last", "meldkit merge recipe.yml out"),
    "pytorch a recipe.yml": ("'recipe.yml' is a recipe, and OUT comes last", "meldkit pytorch recipe.yml a"),
    "merge a out": (
        "cannot read recipe 'a': Is a directory",
        "it is a model; a recipe says what to do with models; 'meldkit new' writes one",
    ),
    "plan recipes": ("cannot read recipe 'recipes': Is a directory", "name a file, such as recipes/one.yml"),
    "plan empty": ("cannot read recipe 'empty': Is a directory", "name a file"),
    "plan recipe.yaml": (
        "cannot read recipe 'recipe.yaml': No such file or directory",
        "did you mean 'recipe.yml'?",
    ),
    "plan absent.yml": (
        "cannot read recipe 'absent.yml': No such file or directory",
        "check the path; 'meldkit new' writes a recipe",
    ),
    "plan nowhere/absent.yml": (
        "cannot read recipe 'nowhere/absent.yml': No such file or directory",
        "check the path; 'meldkit new' writes a recipe",
    ),
    "plan a/config.json": (
        "a/config.json is the configuration of a model, not a recipe",
        "a recipe says what to do with models; 'meldkit new' writes one",
    ),
    "plan a/model.safetensors": (
        "a/model.safetensors is a weight file, not a recipe",
        "a recipe says what to do with models; 'meldkit new' writes one",
    ),
    "inspect recipe.yml": (
        "'recipe.yml' is a recipe, not a model",
        "meldkit plan recipe.yml shows what it would do",
    ),
    "diff a recipe.yml": (
        "'recipe.yml' is a recipe, not a model",
        "meldkit plan recipe.yml shows what it would do",
    ),
    "methods tie": ("unknown merge_method 'tie'", "did you mean 'ties'?"),
}


@pytest.mark.parametrize("line", CASES)
def test_message(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.decoder(Path("a"))
    for folder in ("recipes", "empty"):
        Path(folder).mkdir()
    recipe = {"merge_method": "linear", "models": [{"model": "a"}], "parameters": {"weight": 1}}
    for path in ("recipe.yml", "recipes/one.yml"):
        Path(path).write_text(json.dumps(recipe))
    done = command.run(capsys, *line.split())
    message, hint = CASES[line]
    assert (done.status, done.out, done.err) == (2, "", f"error: {message}\n  {hint}\n")
    assert not Path("out").exists()
    assert max(map(len, done.err.splitlines())) <= 120

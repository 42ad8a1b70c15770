"""Python: the functions, and the notebook that people already have."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml

import tiny
from meldkit import merge, methods, plan
from meldkit.api import Status, read_recipe
from meldkit.config import MergeConfiguration
from meldkit.errors import CheckpointError, NotSupportedError, OutputError, RecipeError
from meldkit.merge import MergeOptions, run_merge

RECIPE = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": 1}}


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models a and b and recipe.yml in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        tiny.decoder(tmp_path / name, seed)
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def test_notebook_block_runs_unchanged_and_again() -> None:
    for seed, name in enumerate(("a", "b")):
        tiny.llama(Path(name), seed)
    for _ in range(2):
        with open("recipe.yml") as fp:  # noqa: PTH123 - as the notebooks have it
            merge_config = MergeConfiguration.model_validate(yaml.safe_load(fp))
        run_merge(
            merge_config,
            out_path="./merged",
            options=MergeOptions(
                lora_merge_cache="/tmp",
                cuda=torch.cuda.is_available(),
                copy_tokenizer=True,
                lazy_unpickle=False,
                low_cpu_memory=False,
            ),
        )
        a, b, merged = (tiny.tensors(Path(name)) for name in ("a", "b", "merged"))
        assert all(torch.allclose(merged[name], (a[name] + b[name]) / 2, atol=1e-7) for name in a)


def test_notebook_replaces_only_what_it_made(caplog: pytest.LogCaptureFixture) -> None:
    config = MergeConfiguration.model_validate({**RECIPE, "parameters": {"weight": 1, "t": 1}})
    run_merge(config, "merged", config_source="text")
    run_merge(MergeConfiguration.model_validate({**RECIPE, "dtype": "float16"}), "merged")
    assert tiny.tensors(Path("merged"))["model.norm.weight"].dtype == torch.float16
    warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert warned == ["'t' has no effect: linear does not use it; slerp, nearswap would"]
    Path("mine").mkdir()
    Path("mine/file").touch()
    with pytest.raises(OutputError, match="mine is not empty"):
        run_merge(config, "mine")
    # A merge that is now an input is not overwritten either, though it was made here.
    chained = MergeConfiguration.model_validate({**RECIPE, "models": [{"model": "merged"}, {"model": "a"}]})
    with pytest.raises(OutputError, match="merged is the folder of the input 'merged'"):
        run_merge(chained, "merged")


def test_recipes_in_every_form() -> None:
    digest = plan("recipe.yml").digest()
    assert plan(Path("recipe.yml")).digest() == digest
    assert plan(RECIPE).digest() == digest
    assert plan(read_recipe(RECIPE)).digest() == digest
    assert plan(MergeConfiguration.model_validate(RECIPE).recipe()).digest() == digest


def test_result_and_progress() -> None:
    seen: list[Status] = []
    made = plan(RECIPE)
    result = merge(made, "out", progress=seen.append)
    assert result.plan is made
    assert result.path == Path("out")
    assert result.seconds > 0
    assert result.bytes_read == made.bytes_to_read == 2 * 624
    assert result.bytes_written == made.bytes_to_write == Path("out/model.safetensors").stat().st_size
    assert (result.num_resumed, result.discarded) == (0, False)
    assert all(0 <= s.done <= s.total for s in seen)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_result(threads: int) -> None:
    merge(RECIPE, "out", MergeOptions(num_threads=threads))
    merge(RECIPE, "one", MergeOptions(num_threads=1))
    assert Path("out/model.safetensors").read_bytes() == Path("one/model.safetensors").read_bytes()


def test_progress_that_fails_stops_the_merge() -> None:
    def stop(_: Status) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(RECIPE, "out", progress=stop)
    assert [p.name for p in Path("out").iterdir()] == [".meldkit-partial"]
    assert merge(RECIPE, "out").path == Path("out")


def test_input_that_vanishes_after_planning() -> None:
    made = plan(RECIPE)
    Path("b/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*b/model\.safetensors: No such file"):
        merge(made, "out")
    assert not Path("out").exists()


def test_occupied_folder_is_refused_before_any_model_is_opened() -> None:
    with pytest.raises(OutputError, match="a is not empty"):
        merge({**RECIPE, "models": [{"model": "org/far-away"}]}, "a")


def test_options() -> None:
    assert methods()[0].name == "linear"
    with pytest.raises(NotSupportedError, match="only safetensors"):
        plan(RECIPE, MergeOptions(safe_serialization=False))
    with pytest.raises(RecipeError, match="num_threads is 0"):
        MergeOptions(num_threads=0)
    assert len(plan(RECIPE, MergeOptions(out_shard_size=400)).files) == 2
    assert MergeOptions().idle() == []
    assert json.dumps(MergeOptions(read_to_gpu=True).idle()).startswith('["--read-to-gpu changes nothing: ')

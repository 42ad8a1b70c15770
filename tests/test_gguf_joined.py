"""Tensors that are made of others by turns read as if the turns had been laid down one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from meldkit.checkpoint import Scratch, TensorInfo, open_files, read_header
from meldkit.checkpoint.gguf.joined import Alternating

#: Elements of a run of each part, for turns that are read whole and for such that are too long for it.
RUNS = [(1, 2), (3, 64, 5), (60_000, 5536), (60_000, 5537), (1, 70_000, 2)]


@given(data=st.data(), runs=st.sampled_from(RUNS), turns=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_any_span(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, runs: tuple[int, ...], turns: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = {str(i): torch.randn(turns, run, generator=generator) for i, run in enumerate(runs)}
    path = Path(tmp_path_factory.mktemp("parts"), "model.safetensors")
    save_file(parts, path)
    whole = torch.cat(list(parts.values()), 1).view(-1)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    stored = read_header(path).tensors
    joined = Alternating(tuple(stored[name] for name in parts), runs)
    assert joined.files == (path,)
    info = TensorInfo("joined", "F32", (len(whole),), path, 0, 4 * len(whole), joined)
    out = torch.full((stop - start,), torch.nan)
    with open_files() as files:
        info.open(files).read(start, stop, out, Scratch())
    assert torch.equal(out, whole[start:stop])

"""Writes docs/architectures.md: merges a small model of every type that transformers can build.

Each type is tried in a process of its own, as the tests of tests/test_zoo.py do it. With patterns, only those
types are tried and nothing is written.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402 - the variables above must be set before
import transformers  # noqa: E402

import zoo  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
TITLES = {
    "causal": "Causal language models",
    "seq2seq": "Encoder-decoder models",
    "masked": "Masked language models",
    "image": "Image-text-to-text models",
}
#: Seconds and bytes of address space for one type.
LIMIT_SECONDS, LIMIT_BYTES = 120, 12 << 30

Result = dict[str, str]

_HEAD = """\
# Architectures

meldkit has no list of architectures. Which tensors are layers, and which layers are the text decoder's, it
reads off the tensor names and `config.json`; the few things that these do not show are the rows of
[quirks.py](../src/meldkit/layout/quirks.py).

This page is written by `scripts/architectures.py`, here with transformers {version}. For each type that
transformers' own mappings name, it builds the smallest model with every kind of layer, saves two of them
with different weights, and merges them:

- *merged*: a `linear` merge is the mean, tensor by tensor, of what is stored, has the same tensors and
  dtypes, is loaded by `from_pretrained` without a missing, unexpected or mismatched key, and computes finite
  numbers;
- *restacked*: a `passthrough` recipe of the layers [0, 2) and [1, n) gives a model of n + 1 layers with
  exactly those weights, which loads and computes likewise.
"""
_ADDRESSES = """\
## What a recipe addresses

`slices` and `layer_range` count the layers of the text decoder; in an encoder-decoder model those of the
decoder, in an encoder those of its only stack. Embeddings are merged with the models of the first slice, and
everything else outside the layers (towers, projectors, norms, heads) with those of the last one; nothing is
dropped. Layers that are stored after the last one and predict further tokens keep their place after the new
last one.

`modules:` addresses parts by name. `default` and `text_decoder` are the text decoder and all that belongs to
no other part. Every other part is called by the component of the tensor names under which it stands:
`visual`, `vision_tower`, `multi_modal_projector`, `encoder`. `vision_tower` and `audio_tower` are understood
whatever a model calls its tower. Parts that the recipe does not name are merged with the models of the text
decoder's module, or of the first module if there is none.

```yaml
merge_method: passthrough
modules:
  text_decoder:
    slices:
      - sources: [{model: org/vlm-a, layer_range: [0, 24]}]
      - sources: [{model: org/vlm-b, layer_range: [8, 32]}]
  vision_tower:
    models: [{model: org/vlm-a}]
```

`config.json` gets the new depth in the section that describes the stack, and with it everything there that
says layer by layer what a layer is: lists with an entry per layer, lists of layer numbers, counts from either
end, and periods. Where a rule of the architecture cannot describe the new sequence of layers, the recipe is
refused before any weight is read.
"""


def attempt(kind: zoo.Kind, folder: Path) -> Result:
    """What happened, step by step; a step that failed says how."""
    result: Result = {}

    def step(name: str, action: Callable[[], object]) -> object:
        try:
            made = action()
        except Exception as e:  # noqa: BLE001 - whatever a model does is a result
            last = traceback.extract_tb(e.__traceback__)[-1]
            result[name] = f"{type(e).__name__}: {e} ({Path(last.filename).name}:{last.lineno})"
            return None
        result[name] = "no layers" if made is None else "ok"
        return made

    siblings = step("build", lambda: zoo.make(kind, folder))
    if isinstance(siblings, zoo.Siblings):
        if siblings.loading:
            result["loading"] = json.dumps(siblings.loading)
        step("merge", lambda: zoo.check_merge(siblings, folder / "merged") or True)
        step("slices", lambda: zoo.check_slices(siblings, folder / "sliced"))
    return result


def in_process(kind: zoo.Kind) -> Result:
    """The same in a child, which may hang, exhaust the memory or crash."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.alarm(LIMIT_SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        folder = Path(tempfile.mkdtemp(prefix="zoo-"))
        try:
            with os.fdopen(write, "w") as pipe:
                json.dump(attempt(kind, folder), pipe)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"build": f"the process ended with status {status}"}


def page(results: dict[zoo.Kind, Result]) -> str:
    """The documentation page."""
    lines = [_HEAD.format(version=transformers.__version__)]
    lines += ["| mapping | types | built here | merged | restacked | without layers | refused |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for mapping, title in TITLES.items():
        found = {k: r for k, r in results.items() if k.mapping == mapping}
        done = [_restacked(k, r) for k, r in found.items()]
        counts = (
            len(found),
            sum(not _merged(k, r).startswith("not built") for k, r in found.items()),
            sum(_merged(k, r) == "yes" for k, r in found.items()),
            done.count("yes"),
            done.count("no layers"),
            sum(text.startswith("refused") for text in done),
        )
        lines.append(f"| {title} | {' | '.join(map(str, counts))} |")
    lines += ["", _ADDRESSES]
    for mapping, title in TITLES.items():
        found = {k: r for k, r in results.items() if k.mapping == mapping}
        whole = {k: _merged(k, r) == _restacked(k, r) == "yes" for k, r in found.items()}
        names = ", ".join(k.model_type for k, good in whole.items() if good)
        lines += [f"## {title}", "", *textwrap.wrap(f"Merged and restacked: {names}.", 110), ""]
        rest = {k: r for k, r in found.items() if not whole[k]}
        if rest:
            lines += ["| type | merged | restacked |", "|---|---|---|"]
            lines += [f"| {k.model_type} | {_merged(k, r)} | {_restacked(k, r)} |" for k, r in rest.items()]
            lines.append("")
    return "\n".join(lines)


def _merged(kind: zoo.Kind, result: Result) -> str:
    if result["build"] != "ok" or kind.model_type in zoo.IMPOSSIBLE:
        return f"not built: {_short(zoo.IMPOSSIBLE.get(kind.model_type, result['build']))}"
    return "yes" if result["merge"] == "ok" else _short(result["merge"])


def _restacked(kind: zoo.Kind, result: Result) -> str:
    if result["build"] != "ok" or kind.model_type in zoo.IMPOSSIBLE:
        return ""
    if kind.model_type in zoo.REFUSED:
        return f"refused: {zoo.REFUSED[kind.model_type]}"
    return {"ok": "yes", "no layers": "no layers"}.get(result["slices"], _short(result["slices"]))


def _short(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")[:160]


def main() -> int:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    # What a child would import again is imported once.
    import meldkit.api  # noqa: F401

    zoo.build(zoo.Kind("causal", "llama"))
    patterns = sys.argv[1:]
    results: dict[zoo.Kind, Result] = {}
    for kind in zoo.kinds():
        if not patterns or any(re.fullmatch(p, str(kind)) for p in patterns):
            results[kind] = in_process(kind)
            print(kind, {k: v for k, v in results[kind].items() if v != "ok"} or "ok", flush=True)
    if not patterns:
        PAGE.write_text(page(results), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

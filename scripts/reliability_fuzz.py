"""The section of docs/reliability.md about fuzzing, from what `make fuzz` found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What fuzzing and attacks found, and what was done about it.
MENDED = (
    (
        "a chat template that doubles a text or a list in a loop, or prints lists in lists, "
        "took all memory, or "
        "minutes inside one step of Python",
        "templates are tried in a process of their own, with 3 s and 512 MB",
    ),
    (
        "half of a surrogate pair in config.json, generation_config.json or "
        "tokenizer_config.json ended a merge, "
        "or the printing of a message, in a UnicodeEncodeError",
        "one writer of JSON for all, which escapes it; messages escape it as well",
    ),
    (
        "added tokens with flags that are no booleans, or with texts that are no Unicode, ended a union of "
        "tokenizers in an exception of the tokenizers library",
        "a message that names the model",
    ),
    (
        "a link in a model's folder had the file that it leads to copied into the output",
        "links lead within the folder, into the hub's cache or to weights; all others are refused",
    ),
    (
        "settings nested a thousand levels deep could end in a RecursionError, and so could "
        "modules.json and a "
        "line of a journal",
        "refused from 100 levels on; such a line counts for nothing",
    ),
    (
        "`~nobody`, or a name of thousands of letters, as source of a tokenizer ended in an "
        "exception of Python",
        "the message that such a path gets elsewhere",
    ),
    (
        "`vocab` and other settings of a tokenizer that name files had any file of the system read into the "
        "merged tokenizer, where transformers reads it",
        "settings that name files are left out before",
    ),
    (
        "a vocabulary with a token of the number 2³² took all memory, and ended the process",
        "numbers from 2²⁴ on are refused",
    ),
    (
        "a prefix of subwords that is longer than a token ended in a panic of the tokenizers library",
        "a message that names the model",
    ),
    (
        "the record of an output could tell `meldkit verify` of files elsewhere, and `meldkit reproduce` to "
        "trust code of models",
        "names lead within the folder, and trust is not recorded for others",
    ),
    (
        "a server of a hub that repeats the access token, or an address with a password, got "
        "it into a message",
        "left out of every message",
    ),
    (
        "a pipe among a model's files was waited for without end",
        "only files are opened",
    ),
    (
        "a chat template took 13 times its size in memory, whatever that was, and files that are only "
        "copied took their own",
        "templates of more than 1 MB are not looked at, and copies are made in pieces",
    ),
    (
        "a regular expression of a recipe could take longer than anybody waits",
        "a tenth of a second for a name",
    ),
    (
        "a number like 1e999 in a chat template ended in a NameError, and an offset beyond 2⁶³ in a zip "
        "archive in a ValueError",
        "messages that name the template and the file",
    ),
    (
        "line breaks in names of a model's settings looked like lines of meldkit's own",
        "escaped wherever something is printed",
    ),
    (
        "`meldkit verify` found no fault with a record that lacks sums, nor with added files that "
        "transformers or peft take for the model's",
        "both are failures",
    ),
)


#: Outcomes other than refusals: a merge that was interrupted goes on, or begins again.
_READ = ("read", "continued", "started over")


def section(fuzz: Mapping[str, Any]) -> str:
    """Markdown of the section.

    Args:
        fuzz: what stands under "fuzz" in docs/reliability.json.
    """
    targets: Mapping[str, Any] = fuzz["targets"]
    rows = [
        f"| {name} | {each['cases']:,} | {_read(each):,} | {_refused(each):,} "
        f"| {sum(len(f['cases']) for f in each['findings'])} | {each['slowest']} |"
        for name, each in targets.items()
    ]
    mended = [f"- {what}: {mend}." for what, mend in MENDED]
    cases = sum(each["cases"] for each in targets.values())
    open_ = sum(len(each["findings"]) for each in targets.values())
    return "\n".join(
        (
            "## Hostile files",
            "",
            "Small real models are damaged on purpose: bytes, lengths, types, keys, names that "
            "lead elsewhere, "
            "deep nesting, huge numbers. Each case must end in a merge, a plan or a message, "
            "within 5 seconds of the processor "
            "and without much memory; anything else is a finding. `make fuzz` runs them, `make test` a few.",
            "",
            f"{cases:,} cases, {open_} open findings.",
            "",
            "| damaged | cases | still read | refused | findings | slowest, s of the clock |",
            "|---|---:|---:|---:|---:|---:|",
            *rows,
            "",
            "Journals that were read led through a merge that went on, or began again, and ended in the "
            f"bytes of an undisturbed one: {_count(targets, 'continued')} continued, "
            f"{_count(targets, 'started over')} started over.",
            "",
            "Found by this and by attacks that were thought out, and mended:",
            "",
            *mended,
            "",
        )
    )


def _count(targets: Mapping[str, Any], kind: str) -> int:
    return sum(each["outcomes"].get(kind, 0) for each in targets.values())


def _read(target: Mapping[str, Any]) -> int:
    return sum(target["outcomes"].get(kind, 0) for kind in _READ)


def _refused(target: Mapping[str, Any]) -> int:
    return sum(n for kind, n in target["outcomes"].items() if kind not in (*_READ, "finding"))

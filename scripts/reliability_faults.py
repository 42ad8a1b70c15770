"""The part of docs/reliability.md about faults, from the results of `scripts/faults.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PHASES = {
    "plan": "planning: nothing written yet",
    "begun": "writing, no tensor durable yet",
    "apply": "writing, some tensors durable",
    "publish": "moving files to their places",
    "replace": "exchanging the new model for the old one (`--overwrite`)",
}

#: What went wrong before, and how it was mended.
BUGS = (
    (
        "`--overwrite` removed the old model's files one by one before the new ones came",
        "the folders trade places in one system call; where that cannot be, config.json goes first",
    ),
    (
        "a second stop, after a stop between the journal's last entry and the first move, could take the old "
        "model's config.json for the new one's and remove it",
        "the journal says when moved files are back",
    ),
    (
        "an input that was replaced while it was read could give a model of two halves",
        "size and time of every input are compared again before the model is published: exit 3, starts over",
    ),
    (
        "an unfinished merge went on with an input that another one of the same size and time had replaced",
        "the time that no program can set counts, too: starts over",
    ),
    (
        "a merge that started as another one finished could lock a journal that was already removed, and "
        "then replace the finished model without `--overwrite`",
        "the lock counts only while the journal is in its place, and the folder is looked at again under it",
    ),
    (
        "an output folder that was removed or moved while it was written to was noticed at the end, as "
        "'tensors were not written'",
        "noticed with the next sync, and said",
    ),
    (
        "a read-write error (EIO) while the files were opened counted as a wrong command line (exit 2)",
        "exit 4, and how to continue",
    ),
    (
        "a damaged line of a journal could name another tensor, which then counted as done",
        "each line carries a sum of it and of all before it",
    ),
    (
        "files of torch.save that were killed while they were written started over",
        "the merged weights are kept until the file has its name",
    ),
    (
        "too little memory or too few threads ended in a traceback",
        "one message, exit 4",
    ),
    (
        "Ctrl-C while the command line was being loaded ended in a traceback; before Python has read "
        "meldkit's first file it still does",
        "`stopped`, exit 4",
    ),
    (
        "`meldkit … | head` said 'cannot write: Broken pipe', or ended with status 1",
        "ends silently with 141, as programs do that such a pipe ends",
    ),
    (
        "a link under the name of the folder of unfinished work, or of the one that `--overwrite` makes "
        "beside the output, had the folder emptied that it leads to, and links in them were written "
        "through",
        "links, folders of others and files that no merge leaves are refused before anything is touched",
    ),
    (
        "what a disk had changed in finished tensors between a stop and the next start was published, "
        "with sums that fitted",
        "the journal has their sums, and such tensors are made again",
    ),
)


def section(faults: Mapping[str, Any]) -> str:
    """Markdown.

    Args:
        faults: what docs/reliability.json has under "faults".
    """
    lines = ["## Faults survived", ""]
    if kills := faults.get("kills"):
        lines += [
            f"{kills['kills']} real `meldkit merge` processes were killed (`kill -9`) at random moments "
            f"(`scripts/faults.py`, {_seeds(kills)}), over merges of these kinds, in several files, "
            f"with one and two threads, every other one replacing a model: {', '.join(kills['recipes'])}.",
            "",
            "| killed while | times |",
            "|---|---:|",
            *(f"| {_PHASES[phase]} | {number} |" for phase, number in kills["killed"].items()),
            "",
            f"After each, the folder held nothing that looks like a model, or a whole one: {_wrong(kills)}. "
            f"{kills['merges']} merges were then finished by the same command, each with the bytes of an "
            f"undisturbed one. {kills['continued']} of them found finished tensors, said how many, and "
            f"reused {kills['reused']:,} of {kills['tensors']:,}.",
            "",
        ]
    if attacks := faults.get("attacks"):
        endings = sorted({ending for found in attacks["faults"].values() for ending in found})
        lines += [
            f"Faults of the system, each at a random moment ({_seeds(attacks)}): calls that fail from then "
            "on (`LD_PRELOAD`), a real disk (tmpfs) that is too small and then grows, limits, signals. "
            "'Not met': the merge was done before.",
            "",
            f"| fault | {' | '.join(endings)} |",
            f"|---|{'---:|' * len(endings)}",
            *(
                f"| {kind} | {' | '.join(str(found.get(ending, 0)) for ending in endings)} |"
                for kind, found in sorted(attacks["faults"].items())
            ),
            "",
            f"Each failure was one message, no input changed, and {attacks['resumed']} merges were "
            f"finished by the same command with the bytes of undisturbed ones: {_wrong(attacks)}.",
            "",
        ]
    lines += ["Found on the way, and mended:", ""]
    lines += [f"- {bug}: {mend}." for bug, mend in BUGS]
    return "\n".join(lines) + "\n"


def _seeds(part: Mapping[str, Any]) -> str:
    return f"seed{'s' * (len(part['seeds']) > 1)} {' and '.join(map(str, part['seeds']))}"


def _wrong(part: Mapping[str, Any]) -> str:
    number = len(part["wrong"])
    return "no exception" if number == 0 else f"{number} exceptions"

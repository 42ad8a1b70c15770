"""The page of a merge that was run."""

from __future__ import annotations

from jinja2.filters import do_filesizeformat as size

from meldkit.api import MergeResult
from meldkit.report.html.page import Block, Cards, Cell, Items, Page, Section, Table, Words
from meldkit.report.html.plan import plan_sections, time_text, warnings_of
from meldkit.report.plan import summarise_plan
from meldkit.report.smoke import ModelRun, SmokeTest


def merge_page(result: MergeResult, peak_memory: int, test: SmokeTest | None = None) -> Page:
    """What a merge has done.

    Args:
        result: of the merge.
        peak_memory: bytes that it took at most.
        test: of its output, if there was one.
    """
    plan = result.plan
    return Page(
        f"Merge into {result.path.name}",
        f"{plan.method.name}: {plan.method.summary}",
        [
            Section("Done", [_done(result, peak_memory), *warnings_of(plan)]),
            Section("Verification", _verification(result)),
            Section("Smoke test", [] if test is None else _smoke(test)),
            *plan_sections(summarise_plan(plan)),
        ],
    )


def _done(result: MergeResult, peak_memory: int) -> Cards:
    plan = result.plan
    speed = (result.bytes_read + result.bytes_written) / max(result.seconds, 1e-9)
    discarded = "older work for another plan was thrown away" if result.discarded else ""
    facts: list[tuple[str, Cell, str]] = [
        ("folder", str(result.path), discarded),
        ("tensors", len(plan.jobs), ""),
        ("parameters", plan.num_parameters, ""),
        ("written", size(result.bytes_written), f"in {len(plan.files):,} file{'s' * (len(plan.files) != 1)}"),
        ("read", size(result.bytes_read), ""),
        ("time", time_text(result.seconds), f"{size(speed)}/s read and written"),
        ("peak memory", size(peak_memory), ""),
    ]
    if result.num_resumed:
        facts.insert(2, ("continued", result.num_resumed, "tensors were there from an interrupted run"))
    if result.num_damaged:
        facts.insert(
            2, ("made again", result.num_damaged, "tensors had other bytes than an earlier run wrote")
        )
    return Cards(facts)


def _verification(result: MergeResult) -> list[Block]:
    found = result.verification
    facts = [
        (found.num_tensors, "tensors have the names, shapes, types and places of the plan"),
        (found.num_files, "weight files have the sizes and headers that they should have"),
        (found.num_facts, "sizes in config.json agree with the weights"),
        (found.num_tokens, "tokens of the tokenizer have a row of the embedding each"),
        (found.num_ids, "numbers of tokens in the configuration have a row each"),
    ]
    blocks: list[Block] = [Table(["found", "what was looked at"], [fact for fact in facts if fact[0]])]
    if found.nonfinite:
        blocks.append(
            Items(
                [f"{name} holds NaN or Inf, which was let through" for name in found.nonfinite], warning=True
            )
        )
    return blocks


def _smoke(test: SmokeTest) -> list[Block]:
    runs = [*test.inputs, test.tested]
    passages = list(test.tested.perplexity)
    blocks: list[Block] = [Items(test.warnings, warning=True)] if test.warnings else []
    if passages:
        words = (
            "Perplexity on three passages (lower is better), how often a model's likeliest token is the "
            "result's, and how much of what it wrote it had written before."
        )
        head = ["model", *passages, "same token, %", "repeated, %"]
    else:
        words = "The cosine of each model's embeddings with the result's."
        head = ["model", "cosine"]
    blocks += [Words([words]), Table(head, [_run(run, passages) for run in runs])]
    failed = [f"{run.label} was not run: {run.failure}" for run in runs if run.failure]
    if failed:
        blocks.append(Items(failed))
    texts: list[list[Cell]] = [
        [run.label, passage, text] for run in runs for passage, text in run.continuations.items()
    ]
    if texts:
        blocks.append(Table(["model", "passage", "continuation"], texts, title="What they wrote"))
    return blocks


def _run(run: ModelRun, passages: list[str]) -> list[Cell]:
    if not passages:
        return [run.label, run.cosine]
    perplexity = [run.perplexity.get(passage) for passage in passages]
    shares = [None if share is None else 100 * share for share in (run.agreement, run.repetition)]
    return [run.label, *perplexity, *shares]

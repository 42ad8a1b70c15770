"""The tables of a model, made anew for another vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from meldkit.api import devices_of
from meldkit.checkpoint import OpenFiles, Scratch, TensorInfo
from meldkit.composed import Altered, altered
from meldkit.options import MergeOptions
from meldkit.plan.tables import Table
from meldkit.recipe import ModelRef
from meldkit.shapes import Tensor
from meldkit.tools.transplant.approximate import METHODS, Task
from meldkit.tools.transplant.rows import NewRows, WeightedRows, columns_of, lengths, read_rows
from meldkit.tools.transplant.side import Side
from meldkit.tools.transplant.tokens import Match, Vocabularies, untrained
from meldkit.tools.transplant.wanted import Transplant
from meldkit.vocab import AlignedRows, MeanRow, RowMap, meanings, pieces

#: Rows of a table read at once where all are gone through.
_ROWS = 1024
#: Rows of which the error is measured; means over so many say enough.
_MEASURED = 4096
#: Methods whose sums depend on the donor's rows alone.
_IN_THE_DONORS_SPACE = ("omp", "common_interpolation", "mp_rope")
#: Those of which the error in the donor's space says something.
_MEASURABLE = ("omp", "common_interpolation")

#: Called with how many rows of a table are done, of how many, and the table's name.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class NewTable:
    """What becomes of a table.

    Attributes:
        name: of the tensor.
        exact, byte, prefix: tokens whose row the model has.
        made: tokens whose row is made.
        untrained: tokens whose row is 0, as they seem to be trained in neither model.
        error: mean of the relative distances between the donor's rows and what they were approximated by, in
            the donor's space; None where the method approximates nothing there.
    """

    name: str
    exact: int
    byte: int
    prefix: int
    made: int
    untrained: int
    error: float | None


class Surgery:
    """Makes the tables of a model anew; arguments as of `plan_transplant`."""

    def __init__(
        self,
        wanted: Transplant,
        options: MergeOptions,
        model: Side,
        donor: Side,
        files: OpenFiles,
        progress: Progress | None,
    ) -> None:
        self._wanted = wanted
        self._options = options
        self._model = model
        self._donor = donor
        self._files = files
        self._progress = progress
        self._vocabularies = Vocabularies(model.tokenizer, donor.tokenizer, (model.roles(), donor.roles()))
        self._sums: dict[tuple[object, ...], WeightedRows] = {}
        self._found_untrained: dict[ModelRef, np.ndarray] = {}
        multiple = wanted.pad_to_multiple_of
        self.size = -(-donor.tokenizer.size // multiple) * multiple
        self.digests: list[str] = []
        self.warnings: list[str] = []

    def tables(self) -> tuple[dict[str, TensorInfo], list[NewTable]]:
        """The new tables by name, and what became of each."""
        tensors: dict[str, TensorInfo] = {}
        reports: list[NewTable] = []
        # Files may have the head first, and nobody looks there first.
        order = sorted(self._model.tables, key=lambda name: not self._model.is_embedding(name))
        for name in order:
            tensors[name], report = self._table(name, self._model.tables[name])
            reports.append(report)
        for name in self._model.model.tied_heads():
            # It is left out where the model is written.
            assert self._model.embedding is not None
            tensors[name] = replace(tensors[self._model.embedding[0]], name=name)
        return tensors, reports

    def _table(self, name: str, table: Table) -> tuple[TensorInfo, NewTable]:
        wanted = self._wanted
        head = not self._model.is_embedding(name)
        here = ("yes", "lm_head" if head else "embed")
        byte, prefix = wanted.byte_match in here, wanted.prefix_match in here
        donor_name, donor = self._counterpart(name, head=head)
        match = self._vocabularies.match(
            (table.rows, donor.rows),
            byte=byte,
            prefix=prefix,
            untrained=self._untrained(self._model) if wanted.magikarp else None,
        )
        zeros = set[int]()
        atoms = [number for number in sorted(match.exact) if number < donor.rows]
        if wanted.magikarp:
            theirs = self._untrained(self._donor)
            zeros = {n for n in match.missing if n < len(theirs) and theirs[n]}
            match.missing[:] = [n for n in match.missing if n not in zeros]
            atoms = [n for n in atoms if not (n < len(theirs) and theirs[n])]
        if len(match.all) < len(match.missing) // 100 and wanted.method in _IN_THE_DONORS_SPACE:
            self.warnings.append(
                f"{name}: the vocabularies share {len(match.all):,} of {self._donor.tokenizer.size:,} tokens"
            )
        new = error = None
        if len(table.row_shape) == 1 and match.missing:
            if wanted.method == "omp" and wanted.k >= columns_of(donor):
                self.warnings.append(
                    f"{name}: --k is {wanted.k}, and the donor's rows have {columns_of(donor)} numbers: any "
                    "row is a sum of so many others, whether they have to do with it or not"
                )
            # Where the donor's head is its embedding, the same sums may do for both tables.
            key = (donor_name, table.rows, byte, prefix)
            if key in self._sums:
                new = replace(self._sums[key], table=table)
            else:
                task = self._task(name, table, donor, match, atoms, head=head)
                new = METHODS[wanted.method](task)
                if isinstance(new, WeightedRows) and wanted.method in _IN_THE_DONORS_SPACE:
                    self._sums[key] = new
            if isinstance(new, WeightedRows) and wanted.method in _MEASURABLE:
                error = self._error(new, donor, match, atoms)
        info = self._assembled(table, match, new, zeros, name)
        report = NewTable(
            name,
            *map(len, (match.exact, match.byte, match.prefix, match.missing)),
            untrained=len(zeros),
            error=error,
        )
        return info, report

    def _counterpart(self, name: str, *, head: bool) -> tuple[str, Table]:
        """The donor's table for one of the model's: a tied head's is the embedding."""
        same = self._donor.tables.get(name)
        if same is not None and len(same.row_shape) == 1:
            return name, same
        found = (self._donor.head if head else None) or self._donor.embedding
        assert found is not None
        return found

    def _untrained(self, side: Side) -> np.ndarray:
        """Which rows of a model seem untrained; found out once."""
        if side.ref not in self._found_untrained:
            assert side.embedding is not None
            (_, embedding), head = side.embedding, side.head
            self._found_untrained[side.ref] = untrained(
                side.tokenizer,
                embedding.rows,
                lambda: self._blocks(embedding),
                None if head is None or head[1].rows != embedding.rows else lambda: self._blocks(head[1]),
            )
        return self._found_untrained[side.ref]

    def _task(
        self, name: str, table: Table, donor: Table, match: Match, atoms: list[int], *, head: bool
    ) -> Task:
        wanted, options = self._wanted, self._options
        missing = np.array(match.missing, np.int64)
        own = np.array([match.exact[number] for number in atoms], np.int64)

        def cut() -> list[list[int]]:
            tokens = self._donor.tokenizer.tokens
            texts = {tokens[token]: meaning for token, meaning in meanings(self._donor.tokenizer).items()}
            return pieces(self._model.tokenizer, [texts[number] for number in match.missing])

        def done(count: int) -> None:
            if self._progress is not None:
                self._progress(count, len(missing), name)

        return Task(
            table=table,
            donor=donor,
            missing=missing,
            targets=lambda: read_rows(self._files, donor, missing),
            shared=own,
            atoms=lambda: read_rows(self._files, donor, np.array(atoms, np.int64)),
            own=lambda: read_rows(self._files, table, own),
            blocks=lambda: self._blocks(table),
            pieces=cut,
            head=head,
            heads=lambda: (self._donor.heads(), self._model.heads()),
            k=wanted.k,
            cosine=wanted.cosine,
            weight_scheme=wanted.weight_scheme,
            subword_method=wanted.subword,
            device=devices_of(options)[0].name,
            threads=options.num_threads,
            batch=wanted.batch_size if (wanted.batch_size or 0) > 0 else None,
            key=f"{options.random_seed or 0} {name}",
            progress=done,
        )

    def _error(self, rows: WeightedRows, donor: Table, match: Match, atoms: list[int]) -> float:
        """How far sums of the donor's rows are from the rows that they stand for, relative, on average."""
        step = max(1, len(match.missing) // _MEASURED)
        numbers = np.array(match.missing[::step], np.int64)
        of_model = {match.exact[number]: number for number in reversed(atoms)}
        places, back = np.unique(rows.rows[::step], return_inverse=True)
        theirs = read_rows(self._files, donor, np.array([of_model[n] for n in places.tolist()], np.int64))
        targets = read_rows(self._files, donor, numbers)
        weights = torch.from_numpy(rows.weights[::step])
        back = torch.from_numpy(back.reshape(weights.shape))
        left = torch.stack(
            [target - by @ theirs[own] for target, own, by in zip(targets, back, weights, strict=True)]
        )
        known = lengths(targets) > 0
        return float((lengths(left)[known] / lengths(targets)[known]).mean()) if bool(known.any()) else 0.0

    def _blocks(self, table: Table) -> Iterator[Tensor]:
        source, scratch, columns = table.info.open(self._files), Scratch(), columns_of(table)
        for first in range(0, table.rows, _ROWS):
            block = torch.empty(min(_ROWS, table.rows - first), columns)
            source.read(first * columns, first * columns + block.numel(), block.view(-1), scratch)
            yield block

    def _assembled(
        self, table: Table, match: Match, new: NewRows | None, zeros: set[int], name: str
    ) -> TensorInfo:
        """The table with a row for each of the donor's tokens; numbers without one get the mean row."""
        tables = [table.info]
        places = np.full(self.size, -1, np.int64)
        kinds = np.full(self.size, 2, np.int16)
        for number, row in match.all.items():
            kinds[number], places[number] = 0, row
        if new is not None:
            made = table.with_rows(len(match.missing), new)
            changes = Altered(
                made,
                self._wanted.noise,
                self._wanted.scale,
                key=f"{self._options.random_seed or 0} noise {name}",
            )
            made = altered(made, changes)
            self.digests.append(new.digest)
            numbers = np.array(match.missing, np.int64)
            kinds[numbers], places[numbers] = 1, np.arange(len(numbers))
        else:
            # Of a vector, such as biases, new entries are 0.
            made = table.info
            zeros = zeros | set(match.missing)
        tables += [made, table.with_rows(1, MeanRow(table.info))]
        places[kinds == 2] = 0
        counts = np.ones(self.size, np.int64)
        counts[list(zeros)] = 0
        starts = np.concatenate(([0], counts.cumsum()))
        kept = counts == 1
        kinds, places = kinds[kept], places[kept]
        if table.surplus:
            # What is behind the tokens of texts stays there (Mllama).
            behind = np.arange(table.rows - table.surplus, table.rows)
            starts = np.concatenate((starts, starts[-1] + 1 + np.arange(table.surplus)))
            kinds = np.concatenate((kinds, np.zeros(table.surplus, np.int16)))
            places = np.concatenate((places, behind))
        rows = RowMap(starts, kinds, places)
        self.digests.append(rows.digest)
        return table.with_rows(self.size + table.surplus, AlignedRows(tuple(tables), rows))

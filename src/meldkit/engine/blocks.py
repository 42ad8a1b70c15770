"""Rounding to 8-bit floats that share a scale with the elements around them.

    value ≈ code · scale                scale = max |value| of the block / largest code

A tensor is cut into blocks of height × width elements of its last two dimensions, which go into them without
remainder. A row of blocks, `height` rows of the tensor, is a run of its elements.
"""

from __future__ import annotations

import torch

from meldkit.checkpoint import Scratch
from meldkit.plan import TensorJob
from meldkit.shapes import Float32, Tensor


def elements_of_row(job: TensorJob) -> int:
    """Elements of a row of blocks."""
    return job.block[0] * job.shape[-1]


def scales_of(
    job: TensorJob, values: Float32[Tensor, " n"], scratch: Scratch, *, allow_nonfinite: bool
) -> Float32[Tensor, "rows columns"]:
    """The scales of whole rows of blocks; they are finite if all values are. A block of zeros has 1.

    Args:
        job: says how large blocks are.
        values: of the rows. NaN and Inf become NaN if they are allowed, which codes can express.
        scratch: overwritten.
        allow_nonfinite: leave values that are no numbers out of account.
    """
    height, width = job.block
    magnitudes = torch.abs(values, out=scratch.take(values.nbytes).view(torch.float32))
    largest = _largest(magnitudes, height, width, job.shape[-1])
    if allow_nonfinite and not largest.isfinite().all():
        bad = magnitudes.isfinite().logical_not_()
        values.masked_fill_(bad, torch.nan)
        largest = _largest(magnitudes.masked_fill_(bad, 0), height, width, job.shape[-1])
    # Normal numbers: others have too few bits, and devices may take them for 0.
    smallest = torch.finfo(torch.float32).tiny
    scales = largest.div(torch.finfo(torch.float8_e4m3fn).max).clamp_(min=smallest)
    return scales.masked_fill_(largest == 0, 1)


def _largest(
    magnitudes: Float32[Tensor, " n"], height: int, width: int, columns: int
) -> Float32[Tensor, "rows columns"]:
    # In two steps, each over neighbours: torch is slow at dimensions that are not.
    beside = magnitudes.view(-1, width).amax(1)
    return beside.view(-1, height, columns // width).amax(1)


def round_to(
    codes: Tensor, values: Float32[Tensor, " n"], scales: Float32[Tensor, "rows columns"], job: TensorJob
) -> None:
    """Fill `codes` [n] of the job's dtype; the values are overwritten."""
    height, width = job.block
    blocks = values.view(-1, height, scales.shape[1], width)
    codes.view(blocks.shape).copy_(blocks.div_(scales[:, None, :, None]))

"""Where weights come from."""

from __future__ import annotations

from meldkit.checkpoint.adapter import PREFIX, LoneAdapter, open_alone, weights_file
from meldkit.checkpoint.dtypes import BY_TORCH_NAME, DTYPES, DType
from meldkit.checkpoint.experts import ExpertLayer, as_stored_by, expert_layers
from meldkit.checkpoint.files import OpenFiles, open_files
from meldkit.checkpoint.folder import Checkpoint, open_checkpoint
from meldkit.checkpoint.gguf.joined import Constant
from meldkit.checkpoint.json_file import read_json, shown, write_json
from meldkit.checkpoint.links import check_links
from meldkit.checkpoint.models import (
    lone_adapters,
    may_be_on_hub,
    open_as_stored,
    open_model,
    with_adapters,
)
from meldkit.checkpoint.rearranged import Matrix, joined, transposed
from meldkit.checkpoint.renamed import as_named_by
from meldkit.checkpoint.safetensors import MAX_HEADER_BYTES, parse_header, read_header
from meldkit.checkpoint.stored import quantisation_method, stored_entries
from meldkit.checkpoint.tensor import (
    Encoding,
    Header,
    HeldTensor,
    Scratch,
    StoredTensor,
    TensorInfo,
    TileSource,
    read_all,
)
from meldkit.checkpoint.weights import stays_inside

__all__ = [
    "BY_TORCH_NAME",
    "DTYPES",
    "MAX_HEADER_BYTES",
    "PREFIX",
    "Checkpoint",
    "Constant",
    "DType",
    "Encoding",
    "ExpertLayer",
    "Header",
    "HeldTensor",
    "LoneAdapter",
    "Matrix",
    "OpenFiles",
    "Scratch",
    "StoredTensor",
    "TensorInfo",
    "TileSource",
    "as_named_by",
    "as_stored_by",
    "check_links",
    "expert_layers",
    "joined",
    "lone_adapters",
    "may_be_on_hub",
    "open_alone",
    "open_as_stored",
    "open_checkpoint",
    "open_files",
    "open_model",
    "parse_header",
    "quantisation_method",
    "read_all",
    "read_header",
    "read_json",
    "shown",
    "stays_inside",
    "stored_entries",
    "transposed",
    "weights_file",
    "with_adapters",
    "write_json",
]

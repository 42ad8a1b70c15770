"""Where weights come from.

What few models have, such as adapters over them or the format of llama.cpp, is imported where it is met, from
places of its own: `adapter`, `experts`, `gguf`, `hub`, `pickled`, `quantised`, `rearranged`, `stored`.
"""

from __future__ import annotations

from meldkit.checkpoint.ahead import main_memory
from meldkit.checkpoint.dtypes import BY_TORCH_NAME, DTYPES, DType
from meldkit.checkpoint.files import OpenFiles, open_files
from meldkit.checkpoint.folder import Checkpoint, open_checkpoint
from meldkit.checkpoint.json_file import read_json, shown, write_json
from meldkit.checkpoint.links import check_links
from meldkit.checkpoint.models import (
    Locate,
    folders_here,
    lone_adapters,
    may_be_on_hub,
    open_as_stored,
    open_model,
    with_adapters,
)
from meldkit.checkpoint.renamed import alike, as_named_by
from meldkit.checkpoint.safetensors import MAX_HEADER_BYTES, parse_header, read_header
from meldkit.checkpoint.tensor import (
    Encoding,
    Header,
    HeldBytes,
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
    "Checkpoint",
    "DType",
    "Encoding",
    "Header",
    "HeldBytes",
    "HeldTensor",
    "Locate",
    "OpenFiles",
    "Scratch",
    "StoredTensor",
    "TensorInfo",
    "TileSource",
    "alike",
    "as_named_by",
    "check_links",
    "folders_here",
    "lone_adapters",
    "main_memory",
    "may_be_on_hub",
    "open_as_stored",
    "open_checkpoint",
    "open_files",
    "open_model",
    "parse_header",
    "read_all",
    "read_header",
    "read_json",
    "shown",
    "stays_inside",
    "with_adapters",
    "write_json",
]

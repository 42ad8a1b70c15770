"""Shapes and dtypes in the annotations of the mathematics are checked in every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from hub_server import Hub, serve

install_import_hook(["meldkit.methods", "meldkit.kernels"], "typecheck.checked")


@pytest.fixture(autouse=True)
def methods_of_plugins_are_forgotten() -> Iterator[None]:
    """A process knows the methods of every plugin that it has loaded; tests share one."""
    from meldkit.methods import METHODS

    known = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(known)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for its own, with an empty cache."""
    import huggingface_hub.constants as constants
    from huggingface_hub.utils import disable_progress_bars

    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    disable_progress_bars()
    with serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield served

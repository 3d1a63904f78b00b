"""Networks trained on real data are shared by the recipes of one session, and kept from the user's cache."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))

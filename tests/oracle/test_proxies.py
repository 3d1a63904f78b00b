"""Proxies of the environment: whose they are, for whom they are none, and what is said of a broken one."""

import http.server
import threading

import pytest

from dfke_jax.core.errors import EndpointError, InputError
from dfke_jax.oracle import RemoteVictim
from dfke_jax.oracle.proxies import Proxy, proxy_for

VARIABLES = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_who_is_asked_through_a_proxy(monkeypatch, variable):
    monkeypatch.setenv(variable, "http://user:secret@proxy.example:3128")
    found = proxy_for("http://victim.example/v1")
    assert found == Proxy("http://user:secret@proxy.example:3128", variable)
    assert str(found) == f"proxy http://proxy.example:3128 of {variable}"
    assert (proxy_for("https://victim.example") is not None) == (variable == "ALL_PROXY")
    for here in ("localhost", "127.0.0.1", "127.9.9.9", "[::1]", "a.localhost"):
        assert proxy_for(f"http://{here}:8000") is None, here
    monkeypatch.setenv("NO_PROXY", "victim.example")
    assert proxy_for("http://victim.example") is None


@pytest.mark.parametrize("value", ["http://", "ftp://p:1", "http://p:x", "http://p:99999", "http://a b", "http://[::1"])
def test_a_broken_variable_is_named(monkeypatch, value):
    monkeypatch.setenv("HTTP_PROXY", value)
    with pytest.raises(InputError, match="HTTP_PROXY of the environment names no proxy"):
        RemoteVictim("http://victim.example", retries=0)


def test_a_proxy_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with pytest.raises(EndpointError, match=r"through the proxy http://127.0.0.1:1 of HTTP_PROXY"):
        RemoteVictim("http://victim.example", retries=0)


def test_a_proxy_is_used_and_never_for_this_machine(monkeypatch):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        for url in ("http://victim.example", f"http://localhost:{port}"):
            with pytest.raises(EndpointError, match="status 404"):
                RemoteVictim(url, retries=0)
        server.shutdown()
    assert asked == ["http://victim.example/v1/describe", "/v1/describe"]

"""The proxy that the environment names for an address: checked, named in messages, and never one
for this machine itself.
"""

import ipaddress
import os
import urllib.parse
import urllib.request
from typing import NamedTuple

from dfke_jax.core.errors import InputError

SCHEMES = ("http", "https", "socks5", "socks5h")


class Proxy(NamedTuple):
    """A proxy and where it was named.

    Attributes:
      address: ``scheme://[user:password@]host:port``. variable: of the environment that names it.
    """

    address: str
    variable: str

    def __str__(self) -> str:
        """Without user and password, which have no place in a message."""
        parts = urllib.parse.urlsplit(self.address)
        return f"proxy {parts.scheme}://{parts.netloc.rpartition('@')[2]} of {self.variable}"


def proxy_for(url: str) -> Proxy | None:
    """The proxy for an address: that of ``HTTP_PROXY`` or ``HTTPS_PROXY``, else of ``ALL_PROXY``,
    in either case of letters.

    Args:
      url: ``http(s)://host...``.

    Returns:
      The proxy; None without any, for what ``NO_PROXY`` excepts, and for this machine:
      ``localhost`` and loopback addresses, which a proxy would look for on a machine of its own.

    Raises:
      InputError: for a variable that holds no address of a proxy; it names the variable.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # no address: whoever connects says so
        return None
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass_environment(host):  # type: ignore[attr-defined]
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            value = os.environ.get(variable, "").strip()
            if value:
                return _checked(value, variable)
    return None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: ``localhost``, a name below it, or an address of the
    loopback.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked(value: str, variable: str) -> Proxy:
    address = value if "://" in value else f"http://{value}"
    try:
        parts = urllib.parse.urlsplit(address)
        sound = (
            parts.scheme in SCHEMES
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:  # a port that is no number, brackets that do not close
        sound = False
    if not sound or not address.isprintable() or " " in address:
        raise InputError(
            f"the variable {variable} of the environment names no proxy (SCHEME://HOST:PORT, of "
            f"the schemes {', '.join(SCHEMES)}); mend or unset it, or except the endpoint in "
            "NO_PROXY"
        )
    return Proxy(address, variable)


__all__ = ["Proxy", "is_loopback", "proxy_for"]

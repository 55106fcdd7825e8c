"""Connect to public addresses only.

A host name is resolved once, and the socket is opened to an address that has been checked. A check
before the request would not help: a second resolution may give another address (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpcore

# Special-purpose ranges that `ipaddress` may call global: IETF assignments, 6to4 relays, Azure's
# host agent, Teredo.
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23")
]
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052


def is_public(address: str) -> bool:
    """Return whether an IP address is globally routable, also the IPv4 address inside an IPv6 one.

    False for what is not an IP address.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if parsed not in _GLOBAL_UNICAST:
            return False
    return (
        parsed.is_global
        and not parsed.is_multicast
        and not any(parsed in network for network in _NOT_PUBLIC)
    )


class NoAllowedAddressError(Exception):
    """The host has no address, or none that is allowed."""


class AddressCheckingBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to addresses that have been checked."""

    def __init__(self, resolver: ThreadPoolExecutor, public_only: bool) -> None:
        self._resolver = resolver
        self._public_only = public_only
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of `host` that is allowed and answers."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._resolver, _resolve, host, port
            )
        except (OSError, UnicodeError):
            # One answer for both: an internal name must not be told from one that does not exist.
            raise NoAllowedAddressError from None
        addresses = [address for address in found if not self._public_only or is_public(address)]
        failure: Exception = NoAllowedAddressError()
        for address in addresses:
            try:
                return await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def literal_address(host: str) -> str | None:
    """Return the IP address that `host` writes, in any notation; None if it is a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))  # 127.1, 0x7f000001, 2130706433
    except (OSError, UnicodeError):
        return None

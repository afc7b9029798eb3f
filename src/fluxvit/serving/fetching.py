"""Videos that requests name by an address, if the server opens addresses at all."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import IO, Any
from urllib.parse import urlsplit

from fluxvit.serving.config import ServeConfig
from fluxvit.serving.errors import RequestError


async def fetch(url: str, file: IO[bytes], config: ServeConfig) -> None:
    """Write what an address holds to a file.

    The connection goes to the network address that was checked, so that a second answer of the name server
    cannot lead elsewhere. Redirections are not followed.

    Raises:
        RequestError: The server does not open the address, or it cannot be read, is too large or too slow.
    """
    if config.urls == "none":
        raise RequestError(403, "forbidden_url", "this server opens no addresses; upload the video")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(400, "bad_request", f"{url}: give an address that begins with http:// or https://")
    try:
        await asyncio.wait_for(_download(url, parts, file, config), config.upload)
    except asyncio.TimeoutError:
        message = f"{url} did not arrive within {config.upload:g} s"
        raise RequestError(408, "slow_upload", message) from None


async def _download(url: str, parts: Any, file: IO[bytes], config: ServeConfig) -> None:
    import httpx

    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = await _resolve(url, parts.hostname, port, config.urls == "public")
    literal = f"[{host}]" if ":" in host else host
    address = parts._replace(netloc=f"{literal}:{port}", fragment="").geturl()
    headers = {"Host": parts.netloc.rpartition("@")[2]}
    extensions = {"sni_hostname": parts.hostname} if parts.scheme == "https" else {}
    try:
        # Proxies of the environment would undo the check of the address.
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False) as client,
            client.stream("GET", address, headers=headers, extensions=extensions) as response,
        ):
            if response.status_code != 200:
                message = f"{url} answers with status {response.status_code}; give the address of a file"
                raise RequestError(422, "unreadable_video", message)
            size = 0
            async for chunk in response.aiter_bytes():
                size += len(chunk)
                if size > config.max_bytes:
                    message = f"{url} has more than {config.max_bytes} bytes"
                    raise RequestError(413, "too_large", message)
                file.write(chunk)
    except httpx.HTTPError as error:
        message = f"{url} cannot be opened ({error or type(error).__name__})"
        raise RequestError(422, "unreadable_video", message) from None
    file.flush()


async def _resolve(url: str, host: str, port: int, public: bool) -> str:
    """A network address of a host.

    Raises:
        RequestError: There is none, or one of them is not public although it should be.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise RequestError(422, "unreadable_video", f"{url}: the host {host} is not known") from None
    addresses = [str(row[4][0]) for row in found]
    if public and not all(ipaddress.ip_address(address).is_global for address in addresses):
        raise RequestError(403, "forbidden_url", f"{url}: this server opens addresses of public hosts only")
    return addresses[0]

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mail server that throws all mail away. Its greeting tells its name and the address of the client.

smtp.py NAME PORT PROXY_PORT: at the second port it expects the PROXY protocol, version 1 or 2.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from asyncio import StreamReader, StreamWriter
from functools import partial

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
NAME = sys.argv[1]


async def proxied_client(reader: StreamReader, writer: StreamWriter) -> str:
    """Read the header of the PROXY protocol; give the client's address that it tells."""
    start = await reader.readexactly(6)
    if start == b"PROXY ":
        return (await reader.readline()).split()[1].decode()
    if start + await reader.readexactly(6) != SIGNATURE:
        raise ValueError("no PROXY protocol")
    command, family = await reader.readexactly(2)
    data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    if command & 15 == 0:  # LOCAL: a health check, of which the balancer itself is the client
        return str(writer.get_extra_info("peername")[0])
    return str(ipaddress.ip_address(data[: 4 if family >> 4 == 1 else 16]))


async def serve(reader: StreamReader, writer: StreamWriter, proxied: bool) -> None:
    """Serve a client."""
    try:
        client = await proxied_client(reader, writer) if proxied else writer.get_extra_info("peername")[0]
        writer.write(f"220 {NAME} {client}\r\n".encode())
        in_data = False
        async for line in reader:
            if in_data:
                if line != b".\r\n":
                    continue
                in_data = False
                writer.write(b"250 taken\r\n")
            elif line.upper().startswith(b"DATA"):
                in_data = True
                writer.write(b"354 go on\r\n")
            elif line.upper().startswith(b"QUIT"):
                writer.write(b"221 bye\r\n")
                break
            else:
                writer.write(b"250 ok\r\n")
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError, ValueError):
        pass  # the client went away
    finally:
        writer.close()


async def main() -> None:
    """Listen at both ports."""
    await asyncio.start_server(partial(serve, proxied=False), "0.0.0.0", int(sys.argv[2]))
    await asyncio.start_server(partial(serve, proxied=True), "0.0.0.0", int(sys.argv[3]))
    await asyncio.Event().wait()


asyncio.run(main())

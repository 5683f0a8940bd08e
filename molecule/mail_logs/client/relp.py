# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send messages as they are by RELP, each from standard input, and print what the server says to each.

relp.py HOST PORT CA [CERTIFICATE KEY]
"""

from __future__ import annotations

import socket
import ssl
import sys


def exchange(connection: ssl.SSLSocket, number: int, command: str, data: bytes) -> str:
    """Send a frame; give the data of the answer."""
    connection.sendall(b"%d %s %d %s\n" % (number, command.encode(), len(data), data))
    answer = connection.recv(65536)
    if not answer:
        raise ConnectionError("closed")
    return answer.split(b" ", 3)[3].decode().splitlines()[0]


def main(host: str, port: str, authority: str, *own: str) -> None:
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False
    if own:
        context.load_cert_chain(*own)
    with context.wrap_socket(socket.create_connection((host, int(port)), timeout=10)) as connection:
        offer = b"relp_version=0\nrelp_software=test\ncommands=syslog"
        print(exchange(connection, 1, "open", offer))
        for number, message in enumerate(sys.stdin.buffer.read().splitlines(), 2):
            print(exchange(connection, number, "syslog", message))


main(*sys.argv[1:])

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the options that all memcached modules have."""

from __future__ import annotations


class ModuleDocFragment:
    """How to reach a memcached; goes with connection_argument_spec() in module_utils."""

    DOCUMENTATION = r"""
options:
  host:
    description:
      - Name or address of the memcached, as seen from the host the module runs on.
      - The addresses of a name are tried one after the other.
    type: str
    default: 127.0.0.1
  port:
    description:
      - TCP port of the memcached.
    type: int
    default: 11211
  socket:
    description:
      - Path of the memcached's Unix socket.
      - Mutually exclusive with O(host) and O(port).
    type: path
  timeout:
    description:
      - Seconds to wait for each answer.
    type: float
    default: 5.0
  connect_timeout:
    description:
      - Seconds to wait for the connection, for each address of O(host).
    type: float
    default: 5.0
  tls:
    description:
      - Use TLS, version 1.2 or later. The memcached has to be started with it (C(-Z)).
      - memcached offers no TLS on a Unix socket.
    type: bool
    default: false
  tls_hostname:
    description:
      - Name (or address) that the server's certificate must be made for.
      - If not given, this is O(host).
    type: str
  validate_certs:
    description:
      - Check that the server's certificate comes from a trusted CA and is made for
        O(tls_hostname).
      - With V(false) the connection is encrypted, and anyone may be at its other end.
    type: bool
    default: true
  ca_path:
    description:
      - PEM file, on the host the module runs on, with the CA certificates to trust.
      - If not given, these are the CAs that the system trusts.
    type: path
  client_cert:
    description:
      - PEM file with the certificate to show to the server, if it asks for one.
    type: path
  client_key:
    description:
      - PEM file with the key of O(client_cert), without a pass phrase.
      - If not given, the key is read from the file of O(client_cert).
    type: path
  login_user:
    description:
      - User name for memcached's ASCII authentication, an entry of the file given to memcached
        with C(-Y).
      - If the memcached asks for no login, none is sent, and the module warns.
    type: str
  login_password:
    description:
      - Password of O(login_user). memcached allows no spaces in it.
    type: str
requirements:
  - pymemcache >= 3.5.0 (package C(python3-pymemcache) on Debian and, from EPEL, on Enterprise
    Linux)
"""

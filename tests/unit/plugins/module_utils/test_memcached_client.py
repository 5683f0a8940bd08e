# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the memcached modules' client: types, connections, logins, TLS and their failures."""

from __future__ import annotations

import socket
import time

import pytest
import yaml
from ansible_collections.tenfold.stack.plugins.doc_fragments.memcached_client import (
    ModuleDocFragment,
)
from ansible_collections.tenfold.stack.plugins.module_utils import memcached_client as client
from ansible_collections.tenfold.stack.plugins.modules import memcached_info, memcached_item

LOGIN = {"login_user": "deploy", "login_password": "sesame"}


def test_the_documented_options_are_those_of_the_argument_spec():
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    spec = client.connection_argument_spec()
    assert documented.keys() == spec.keys()
    for name, option in spec.items():
        assert documented[name]["type"] == option["type"]
        assert documented[name].get("default") == option.get("default")


# Keys, expiry times and lifetimes


@pytest.mark.parametrize("key", ["a", "a:b", "é" * 125, "x" * 250, "\u00a0"])
def test_keys_that_memcached_takes(key):
    assert client.key_bytes(key) == key.encode()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "is empty"),
        ("x" * 251, "251 bytes long"),
        ("é" * 126, "252 bytes long"),
        ("a b", "a space or a control character"),
        ("a\n", "a space or a control character"),
        ("\x00", "a space or a control character"),
        ("\x7f", "a space or a control character"),
    ],
)
def test_keys_that_memcached_refuses(key, message):
    with pytest.raises(client.MemcachedError, match=message):
        client.key_bytes(key)


@pytest.mark.parametrize(
    ("expire", "number"),
    [
        (0, 0),
        (1, 1),
        (2592000, 2592000),
        (2592001, 1700000000 + 2592001),
        (2**31 - 1 - 1700000000, 2**31 - 1),
    ],
)
def test_expiry_time(expire, number):
    assert client.expiry_time(expire, 1700000000) == number


def test_expiry_time_has_an_end():
    with pytest.raises(client.MemcachedError, match="2038"):
        client.expiry_time(2**31 - 1700000000, 1700000000)


@pytest.mark.parametrize(
    ("reply", "ttl"),
    [
        (b"HD t100", 100),
        (b"HD t-1", -1),
        (b"HD t0", 0),
        (b"EN", None),
        (b"ERROR", None),
        (b"OK 100", None),
    ],
)
def test_parse_ttl(reply, ttl):
    assert client.parse_ttl(reply) == ttl


# Statistics


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("curr_items", "12", 12),
        ("oldest", "-3", -3),
        ("rusage_user", "0.005944", 0.005944),
        ("growth_factor", "1.25", 1.25),
        ("version", "1.6", "1.6"),
        ("version", "1.6.18", "1.6.18"),
        ("libevent", "2.1.12-stable", "2.1.12-stable"),
        ("evictions", "on", True),
        ("evictions", "0", 0),
        ("cas_enabled", "yes", True),
        ("detail_enabled", "no", False),
        ("slab_automove", "2", 2),
        ("accepting_conns", "1", True),
        ("accepting_conns", "0", False),
        ("hash_is_expanding", "0", False),
        ("slab_reassign_running", "1", True),
        ("umask", "700", "700"),
        ("inter", "127.0.0.1,::1", "127.0.0.1,::1"),
        ("inter", "NULL", None),
        ("inter", "", None),
        ("domain_socket", "NULL", None),
        ("domain_socket", "11211", "11211"),
        ("domain_socket", "yes", "yes"),
        ("ssl_key", "(null)", None),
        ("num_napi_ids", "(null)", None),
        ("stat_key_prefix", ":", ":"),
        ("stat_key_prefix", "7", "7"),
        ("binding_protocol", "auto-negotiate", "auto-negotiate"),
        ("unknown_text", "1.2.3", "1.2.3"),
    ],
)
def test_typed_stat(name, text, value):
    typed = client.typed_stat(name, text)
    assert (typed, type(typed)) == (value, type(value))


def test_typed_stats():
    assert client.typed_stats({"a": "1", "version": "2"}) == {"a": 1, "version": "2"}


def test_slab_class_stats_of_items_and_slabs():
    items = {"items:10:number": "3", "items:2:number": "1", "items:2:age": "5"}
    assert client.slab_class_stats(items) == (
        [{"slab_class": 2, "number": 1, "age": 5}, {"slab_class": 10, "number": 3}],
        {},
    )
    slabs = {"1:chunk_size": "96", "active_slabs": "1"}
    assert client.slab_class_stats(slabs) == (
        [{"slab_class": 1, "chunk_size": 96}],
        {"active_slabs": 1},
    )


def test_stats_keep_empty_values_and_spaces(run_module, scripted):
    server = scripted(
        {
            "stats": b"STAT cmd_get 0\r\nSTAT uptime 5\r\nEND\r\n",
            "stats settings": b"STAT inter \r\nSTAT memory_file /a b/c\r\nSTAT x\r\nEND\r\n",
        }
    )
    result = run_module(memcached_info, {**server.options, "gather_subset": "settings"})
    assert result["settings"] == {"inter": None, "memory_file": "/a b/c", "x": None}


# Connections


def read(run_module, options, **more):
    """Run memcached_item to read an item."""
    return run_module(memcached_item, {"key": "k", "state": "read", **options, **more})


def test_a_name_with_several_addresses_is_tried_out(run_module, memcached, monkeypatch):
    port = memcached.options["port"]
    addresses = [("::1", port, 0, 0), ("127.0.0.1", port)]
    tried = []

    def resolve(host, *args, **kwargs):
        if host == "cache.example.test":
            return [(0, socket.SOCK_STREAM, 6, "", address) for address in addresses]
        tried.append(host)
        return real(host, *args, **kwargs)

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert read(run_module, {"host": "cache.example.test", "port": port})["failed"] is False
    assert tried == ["::1", "127.0.0.1"]


def test_a_unix_socket_stores_and_reads(run_module, unix_memcached):
    options = {**unix_memcached.options, "key": "k"}
    assert run_module(memcached_item, {**options, "value": "a"})["changed"] is True
    assert read(run_module, unix_memcached.options)["item"]["value"] == "a"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 1}, "Nothing listens at 127.0.0.1 port 1: start the memcached instance"),
        ({"socket": "/nonexistent/s"}, "There is no socket /nonexistent/s"),
        ({"host": "none.invalid"}, "The host name none.invalid has no address"),
        ({"port": 0}, "port is 0"),
        ({"port": 65536}, "port is 65536"),
        ({"timeout": 0}, "timeout is 0.0"),
        ({"connect_timeout": -1}, "connect_timeout is -1.0"),
        ({"socket": "/s", "host": "h"}, "mutually exclusive: socket|host"),
        ({"socket": "/s", "port": 1}, "mutually exclusive: socket|port"),
        ({"socket": "/s", "tls": True}, "no TLS on a Unix socket"),
        ({"login_user": "a"}, "required together: login_user, login_password"),
        ({"login_user": "a b", "login_password": "secret"}, "login_user holds a space"),
        ({"login_user": "a", "login_password": "b c"}, "login_password holds a space"),
        ({"client_key": "/k"}, "'client_key': client_cert"),
        ({"ca_path": "/ca"}, "ca_path has no use without TLS"),
        ({"client_cert": "/c"}, "client_cert has no use without TLS"),
        ({"tls_hostname": "h"}, "tls_hostname has no use without TLS"),
    ],
)
def test_failures_say_what_to_do(run_module, options, message):
    result = read(run_module, options)
    assert result["failed"] is True
    assert message in result["msg"]


def test_a_socket_one_may_not_open(run_module, monkeypatch):
    # Tests often run as root, who may open any socket.
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(client.Client, "_connect", refuse)
    result = read(run_module, {"socket": "/s"})
    assert "The task's user may not open the socket /s: use become" in result["msg"]


def test_a_server_that_closes_the_connection(run_module, scripted):
    result = read(run_module, scripted({"version": b""}).options)
    assert "closed the connection: set tls to true if it expects TLS" in result["msg"]
    result = read(run_module, scripted({"get": b"VALUE k 0 1\r\na\r\nEND\r\n", "mg": b""}).options)
    assert "closed the connection" in result["msg"]


def test_a_server_that_does_not_answer(run_module, scripted):
    start = time.monotonic()
    result = read(run_module, scripted({"version": b"VER"}).options, timeout=0.1)
    assert "did not answer within connect_timeout (5.0 s) or timeout (0.1 s)" in result["msg"]
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("module", [memcached_item, memcached_info])
def test_a_missing_library_is_named_with_its_package(run_module, monkeypatch, module):
    monkeypatch.setattr(client, "PYMEMCACHE_IMPORT_ERROR", "Traceback")
    options = {"key": "k", "state": "read"} if module is memcached_item else {}
    result = run_module(module, options)
    assert "Failed to import the required Python library (pymemcache)" in result["msg"]
    assert "package python3-pymemcache (on Enterprise Linux it is in EPEL)" in result["msg"]


# Logins


def test_a_login_stores_and_reads(run_module, login_memcached):
    options = {**login_memcached.options, **LOGIN, "key": "k"}
    result = run_module(memcached_item, {**options, "value": "a", "expire": 100})
    assert (result["failed"], result["changed"]) == (False, True)
    assert "sesame" not in str(result)
    assert read(run_module, options)["item"]["value"] == "a"
    assert run_module(memcached_info, {**login_memcached.options, **LOGIN})["version"]


def test_a_login_holds_when_the_connection_is_made_again(run_module, login_memcached):
    # The server's refusal closes the connection, and its limit is asked for on a new one.
    options = {**login_memcached.options, **LOGIN, "key": "k"}
    result = run_module(memcached_item, {**options, "value": "x" * (1024 * 1024 - 1)})
    assert "is 1048576 bytes (item_size_max)" in result["msg"]


@pytest.mark.parametrize("login", [{}, {**LOGIN, "login_password": "wrong"}])
def test_a_missing_or_wrong_login(run_module, login_memcached, login):
    result = read(run_module, login_memcached.options, **login)
    expected = "refused the login of deploy" if login else "asks for a login: set login_user"
    assert expected in result["msg"]
    assert "wrong" not in result["msg"]


def test_a_login_is_not_sent_to_a_server_that_asks_for_none(run_module, memcached):
    result = read(run_module, memcached.options, **LOGIN)
    assert result["failed"] is False
    assert "login_password were not sent" in str(result["warnings"])
    assert memcached.raw(b"get login") == b"END\r\n"


# TLS


@pytest.fixture(scope="session")
def tls_memcached(start_memcached, certificates):
    """A function that starts a memcached with TLS, whether it asks for certificates or not."""
    started = {}

    def start(verify=0):
        if verify not in started:
            started[verify] = start_memcached(
                "-Z",
                "-o",
                f"ssl_chain_cert={certificates['cert']},ssl_key={certificates['key']},"
                f"ssl_ca_cert={certificates['ca']},ssl_verify_mode={verify}",
            )
        return {**started[verify].options, "tls": True}

    return start


@pytest.fixture
def named(certificates):
    """The options that trust the test servers' certificate."""
    return {"ca_path": certificates["ca"], "tls_hostname": "cache.example.test"}


def test_tls_stores_and_reads(run_module, tls_memcached, named):
    options = {**tls_memcached(), **named, "key": "k"}
    assert run_module(memcached_item, {**options, "value": "a"})["changed"] is True
    assert read(run_module, options)["item"]["value"] == "a"
    info = run_module(memcached_info, {**tls_memcached(), **named})
    assert info["settings"]["ssl_enabled"] is True


def test_tls_checks_the_name(run_module, tls_memcached, named):
    result = read(run_module, {**tls_memcached(), "ca_path": named["ca_path"]})
    assert "was refused" in result["msg"]
    assert "for the name 127.0.0.1" in result["msg"]


def test_tls_checks_the_ca(run_module, tls_memcached, named, certificates):
    options = {**tls_memcached(), **named}
    result = read(run_module, options, ca_path=certificates["other_ca"])
    assert f"checked with ca_path {certificates['other_ca']}" in result["msg"]
    del options["ca_path"]
    assert "checked with the system's CAs" in read(run_module, options)["msg"]


def test_tls_without_checks(run_module, tls_memcached):
    assert read(run_module, tls_memcached(), validate_certs=False)["failed"] is False


def test_tls_with_a_clients_certificate(run_module, tls_memcached, named, certificates):
    options = {**tls_memcached(2), **named}
    pair = {"client_cert": certificates["cert"], "client_key": certificates["key"]}
    assert read(run_module, options, **pair)["failed"] is False
    # The server may end the handshake or, a moment later, the connection.
    assert "client_cert" in read(run_module, options)["msg"]


def test_tls_with_a_server_that_has_none(run_module, memcached, named):
    result = read(run_module, {**memcached.options, "tls": True, **named, "timeout": 1})
    assert "TLS" in result["msg"]


def test_no_tls_with_a_server_that_wants_it(run_module, tls_memcached):
    result = read(run_module, tls_memcached(), tls=False, timeout=1)
    assert "expects TLS" in result["msg"]


def test_tls_files_that_cannot_be_used(run_module, certificates):
    options = {"port": 1, "tls": True}
    result = read(run_module, options, ca_path="/nonexistent")
    assert "in ca_path /nonexistent cannot be read" in result["msg"]
    result = read(run_module, options, ca_path=certificates["key"])
    assert f"in ca_path {certificates['key']} cannot be read" in result["msg"]
    for key in ("other_key", "locked_key"):
        result = read(
            run_module,
            options,
            client_cert=certificates["cert"],
            client_key=certificates[key],
        )
        assert f"key in {certificates[key]}" in result["msg"]
    result = read(run_module, options, client_cert=certificates["cert"])
    assert f"key in {certificates['cert']}" in result["msg"]

"""What every kind of instance has to do, seen from inside the hosts and from the clients."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import testinfra

CACHE_HOSTS = ["el-1", "el-2", "el-3", "classic-1", "debian-1"]
SCORE = 1.3  # the exposure that `systemd-analyze security` may find at most
INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"].rsplit("/", 1)[0]
SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])


@pytest.fixture(scope="module")
def hosts():
    """Give a function that gives a host by its name."""
    return lambda name: testinfra.get_host(f"ansible://{name}", ansible_inventory=INVENTORY, sudo=True)


def play(name, **variables):
    """Run a playbook of the scenario with other variables."""
    return subprocess.run(
        ["ansible-playbook", f"--inventory={INVENTORY}", str(SCENARIO / name), f"--extra-vars={json.dumps(variables)}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
    )


def address_of(host):
    return host.check_output("hostname -I").split()[0]


def talk(host, words, port=11211, address="127.0.0.1"):
    """Say something to a memcached in the text protocol, as a program on `host`, and give its answer."""
    program = (
        "import socket,sys; s=socket.create_connection((sys.argv[1],int(sys.argv[2])),5); s.settimeout(2);"
        "s.sendall(sys.argv[3].encode().decode('unicode_escape').encode()); print(s.recv(65536).decode())"
    )
    return host.run("python3 -c %s %s %s %s", program, address, str(port), words).stdout.strip()


@pytest.mark.parametrize("name", CACHE_HOSTS)
def test_runs_with_the_flags_that_were_chosen(hosts, name):
    host = hosts(name)
    address = address_of(host)
    listen = f"127.0.0.1,{address}" if name == "el-1" else address
    process = host.check_output("systemctl show --property=MainPID --value memcached@default")
    command = host.file(f"/proc/{process}/cmdline").content_string.strip("\0").split("\0")
    assert " ".join(command[1:]) == f"-p 11211 -u memcached -m 64 -c 1024 -l {listen} -U 0 -t 4"
    assert host.check_output(f"ps -o user= -p {process}") == "memcached"


@pytest.mark.parametrize("name", CACHE_HOSTS)
def test_listens_only_where_told(hosts, name):
    host = hosts(name)
    listening = set(host.check_output("ss -Hltn | awk '{print $4}'").split())
    address = address_of(host)
    expected = {f"{address}:11211"}
    if name == "el-1":
        expected |= {"127.0.0.1:11211", "127.0.0.1:11215"}
        expected |= {f"{address}:{port}" for port in (11212, 11214, 11216, 11217)}
    assert {entry for entry in listening if re.search(r":112\d\d$", entry)} == expected
    assert not re.search(r":112\d\d ", host.check_output("ss -Hlun")), "UDP is off"


@pytest.mark.parametrize(
    "unit",
    ["default", "large", "local", "tls", "login", "disk"],
)
def test_sandbox_of_every_instance(hosts, unit):
    told = hosts("el-1").run(f"systemd-analyze security --no-pager memcached@{unit}.service").stdout
    score = float(re.search(r"exposure level for \S+: ([\d.]+)", told)[1])
    assert score <= SCORE


def test_an_instance_starts_at_boot_and_serves(hosts):
    name = "el-2"
    host = hosts(name)
    assert host.service("memcached@default").is_enabled
    subprocess.run(["docker", "restart", "-t", "5", f"tenfold-memcached-{name}"], check=True, capture_output=True)
    deadline = time.monotonic() + 30
    while host.run("systemctl is-active memcached@default").stdout.strip() != "active":
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.5)
    assert talk(host, "version\\r\\n", address=address_of(host)) == "VERSION 1.6.38"


def test_a_value_pushed_from_one_host_is_pulled_from_another(hosts):
    push = "from pymemcache import Client; Client(('{0}', 11211)).set('across', 'hosts', noreply=False)"
    pull = "from pymemcache import Client; print(Client(('{0}', 11211)).get('across').decode())"
    for name in CACHE_HOSTS:
        address = address_of(hosts(name))
        hosts("client-1").check_output("python3 -c %s", push.format(address))
        assert hosts("client-2").check_output("python3 -c %s", pull.format(address)) == "hosts"


@pytest.mark.parametrize("name", CACHE_HOSTS)
def test_protocol_is_what_libmemcached_expects(hosts, name):
    told = hosts("client-2").check_output(f"memccapable -h {address_of(hosts(name))} -p 11211 2>&1")
    results = re.findall(r"^(?:ascii|binary) .*\[(\w+)\]", told, re.M)
    assert len(results) > 40
    assert set(results) == {"pass"}


def test_options_reach_the_daemon(hosts):
    host = hosts("el-1")
    settings = talk(host, "stats settings\\r\\n", 11212, address_of(host))
    for line in (
        "maxbytes 209715200",
        "maxconns 3000",
        "num_threads 2",
        "item_size_max 4194304",
        "flush_enabled no",
        "growth_factor 1.08",
        "lru_crawler no",
        "hash_algorithm jenkins",
    ):
        assert f"STAT {line}" in settings


def test_more_connections_than_the_usual_limit_of_files(hosts):
    host = hosts("el-1")
    program = (
        "import resource,socket,sys; resource.setrlimit(resource.RLIMIT_NOFILE,(4000,4000));"
        "c=[socket.create_connection((sys.argv[1],11212),5) for _ in range(2900)];"
        "c[-1].sendall(b'version\\r\\n'); print(c[-1].recv(99).decode())"
    )
    assert host.check_output("python3 -c %s %s", program, address_of(host)).startswith("VERSION")


def test_socket_is_for_its_user_only(hosts):
    host = hosts("el-1")
    socket = host.file("/run/memcached-local/memcached.sock")
    assert socket.is_socket
    assert (socket.user, socket.mode) == ("memcached", 0o770)
    say = (
        "import socket; s=socket.socket(socket.AF_UNIX); s.connect('/run/memcached-local/memcached.sock');"
        "s.sendall(b'version\\r\\n'); print(s.recv(99).decode())"
    )
    assert host.check_output("runuser -u memcached -- python3 -c %s", say) == "VERSION 1.6.38"
    assert "PermissionError" in host.run("runuser -u nobody -- python3 -c %s", say).stderr


def test_tls_and_a_plain_listener_beside_it(hosts):
    host = hosts("el-1")
    address = address_of(host)
    program = (
        "import socket,ssl,sys; c=ssl.create_default_context(cadata=sys.argv[2]);"
        "s=c.wrap_socket(socket.create_connection((sys.argv[1],11214),5),server_hostname='el-1');"
        "s.sendall(b'version\\r\\n'); print(s.version(), s.recv(99).decode())"
    )
    certificate = host.file("/etc/pki/tls/certs/lab.crt").content_string
    told = hosts("client-2").check_output("python3 -c %s %s %s", program, address, certificate)
    assert told == "TLSv1.3 VERSION 1.6.38"
    assert talk(host, "version\\r\\n", 11215) == "VERSION 1.6.38"


def test_login_is_needed(hosts):
    host = hosts("el-1")
    address = address_of(host)
    assert talk(host, "get a\\r\\n", 11216, address).startswith("CLIENT_ERROR")
    assert talk(host, "set x 0 0 22\\r\\nweb s3cret-for-the-lab\\r\\n", 11216, address) == "STORED"
    assert talk(host, "set x 0 0 9\\r\\nweb wrong\\r\\n", 11216, address).startswith("CLIENT_ERROR")
    passwords = host.file("/etc/sysconfig/memcached-login.auth")
    assert (passwords.user, passwords.group, passwords.mode) == ("root", "memcached", 0o640)


def test_items_on_disk(hosts):
    host = hosts("el-1")
    file = host.file("/var/cache/memcached/ext")
    assert (file.user, file.is_file) == ("memcached-disk", True)
    assert "STAT extstore_limit_maxbytes 67108864" in talk(host, "stats\\r\\n", 11217, address_of(host))


@pytest.mark.parametrize(
    ("name", "port", "answer"),
    [
        ("el-1", 11211, "VERSION 1.6.38"),  # nothing filters
        ("el-1", 11217, "timed out"),  # allow_from, by systemd
        ("el-3", 11211, "No route to host"),  # memcached_firewalld_sources
    ],
)
def test_who_may_connect(hosts, name, port, answer):
    """From an address outside the networks that may."""
    client, host = hosts("client-2"), hosts(name)
    client.check_output("ip address replace 192.0.2.7/32 dev lo")
    host.check_output(f"ip route replace 192.0.2.7/32 via {address_of(client)}")
    program = (
        "import socket,sys; s=socket.create_connection((sys.argv[1],int(sys.argv[2])),3,('192.0.2.7',0));"
        "s.sendall(b'version\\r\\n'); print(s.recv(99).decode())"
    )
    told = client.run("python3 -c %s %s %s", program, address_of(host), str(port))
    assert answer in told.stdout + told.stderr


def test_one_compiled_and_the_others_got_the_artifact(hosts):
    compilers = [name for name in ("el-2", "el-3") if hosts(name).exists("gcc")]
    assert len(compilers) == 1
    release = "cd /opt/tenfold/memcached && readlink current && sha256sum current/bin/memcached"
    assert len({hosts(name).check_output(release) for name in ("el-2", "el-3")}) == 1


def test_a_host_of_its_own_compiles(hosts):
    assert hosts("client-1").exists("gcc")
    assert not hosts("classic-1").exists("gcc")


def test_classic_layout(hosts):
    host = hosts("classic-1")
    assert host.check_output("readlink -f /home/memcached/bin/memcached").startswith("/home/memcached/1.6.38-")
    libraries = host.check_output("ldd /home/memcached/bin/memcached")
    loaded = re.search(r"libevent\S* => (\S+)", libraries)[1]
    assert loaded.startswith("/opt/tenfold/libevent/2.1.12-")
    assert host.file("/usr/lib/pkgconfig/libevent.pc").is_symlink
    assert host.file("/usr/include/event2/event.h").is_symlink


def test_programs_have_only_what_they_need(hosts):
    assert "libevent" not in hosts("el-2").check_output("ldd /opt/tenfold/memcached/current/bin/memcached")
    features = hosts("el-1").check_output("/opt/tenfold/memcached/current/bin/memcached --help")
    assert "enable-ssl" in features
    assert "proxy_config" in features


def test_modules_talk_to_every_protection(hosts):
    """The modules, run as Ansible runs them, on a client host."""
    client = hosts("client-1")
    address = address_of(hosts("el-1"))
    plain = client.ansible("tenfold.stack.memcached_info", f"host={address}", check=False)
    assert plain["version"] == "1.6.38"
    tls = f"host={address} port=11214 tls=true validate_certs=false"
    stored = client.ansible("tenfold.stack.memcached_item", f"{tls} key=k value=v", check=False)
    assert stored["changed"]
    again = client.ansible("tenfold.stack.memcached_item", f"{tls} key=k value=v", check=False)
    assert not again["changed"]
    login = f"host={address} port=11216 login_user=web login_password=s3cret-for-the-lab"
    read = client.ansible("tenfold.stack.memcached_item", f"{login} key=none state=read", check=False)
    assert not read["item"]["found"], json.dumps(read)


def proxy_state(host):
    return host.check_output(
        "systemctl show -P MainPID -P NRestarts memcached-proxy@default; sha256sum /etc/memcached-proxy/routes.lua"
    )


def test_a_second_service_has_its_own_of_everything(hosts):
    host = hosts("el-2")
    address = address_of(host)
    assert talk(host, "set through 0 0 5\\r\\nproxy\\r\\n", 11311) == "STORED"
    assert "proxy" in talk(host, "get through\\r\\n", address=address)
    assert set(host.check_output("ps -o user:20= -C memcached").split()) == {"memcached", "memcached-proxy"}
    assert host.check_output("readlink /opt/tenfold/memcached-proxy/current") != host.check_output(
        "readlink /opt/tenfold/memcached/current"
    )
    routes = host.file("/etc/memcached-proxy/routes.lua")
    assert (routes.user, routes.group, routes.mode) == ("root", "memcached-proxy", 0o640)


def test_changed_configuration_is_reloaded_without_a_restart(hosts):
    host = hosts("el-2")
    assert talk(host, "get -\\r\\n", 11311) == "SERVER_ERROR refused by first"
    process = host.check_output("systemctl show -P MainPID memcached-proxy@default")
    done = play("proxy.yml", lab_rule="second")
    assert done.returncode == 0, done.stdout + done.stderr
    deadline = time.monotonic() + 10
    while talk(host, "get -\\r\\n", 11311) != "SERVER_ERROR refused by second":
        assert time.monotonic() < deadline, "it was not reloaded"
        time.sleep(0.2)
    assert host.check_output("systemctl show -P MainPID memcached-proxy@default") == process


@pytest.mark.parametrize("broken", ["function (", "function mcp_config_pools() return nothing.at.all end"])
def test_broken_configuration_is_refused_before_it_replaces_the_old(hosts, broken):
    host = hosts("el-2")
    before = proxy_state(host)
    done = play("proxy.yml", lab_routes=broken)
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0, told
    assert "refuses the flags or the configuration of the instance default" in told
    assert "/etc/memcached-proxy/routes.lua:1" in told
    assert proxy_state(host) == before
    assert talk(host, "get -\\r\\n", 11311).startswith("SERVER_ERROR refused")


def test_drain_ends_when_no_instance_is_used(hosts):
    done = play("drain.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok: [el-1 -> client-1") == 5  # all but that with a Unix socket


def test_drain_names_those_that_still_ask(hosts):
    address = address_of(hosts("el-1"))
    ask = (
        "import socket,sys,time; s=socket.create_connection((sys.argv[1],11211),5)\n"
        "while True: s.sendall(b'get a\\r\\n'); s.recv(99); time.sleep(0.1)"
    )
    client = hosts("client-2")
    process = client.check_output("python3 -c %s %s >/dev/null 2>&1 & echo $!", ask, address)
    try:
        done = play("drain.yml")
    finally:
        client.run("kill %s", process)
    assert done.returncode != 0
    told = " ".join((done.stdout + done.stderr).split())
    assert "still used after 3 s" in told
    assert address_of(client) in told

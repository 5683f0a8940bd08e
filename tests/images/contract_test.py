"""What the roles expect of an EL 9 or EL 10 host, checked against images.

    TENFOLD_CONTRACT_IMAGE=IMAGE[,IMAGE...] pytest tests/images/contract_test.py

The same checks run on the stand-in and on real images that have systemd (Rocky, Alma, UBI init): what
they find on the latter is what the former has to be like. Only the stand-in's own labels and its
completeness are checked on the stand-in alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest

IMAGES = [name for name in os.environ.get("TENFOLD_CONTRACT_IMAGE", "").split(",") if name]
pytestmark = pytest.mark.skipif(not IMAGES, reason="TENFOLD_CONTRACT_IMAGE names no image to check")

# No --privileged: these are enough for systemd, and some hosts cannot give more.
RUN = (
    "--cap-add=SYS_ADMIN",
    "--cap-add=NET_ADMIN",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--cgroupns=host",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    "--tmpfs=/tmp",
)
BUILD_PACKAGES = ("gcc", "make", "openssl-devel", "pkgconf-pkg-config")
REPOSITORIES = """
import dnf, json
base = dnf.Base()
base.read_all_repos()
print(json.dumps({repo.id: {"enabled": repo.enabled, "gpgcheck": bool(repo.gpgcheck)} for repo in base.repos.all()}))
"""
PROGRAM = """
#include <openssl/ssl.h>
int main(void) { return SSL_CTX_new(TLS_method()) == NULL; }
"""


class Host:
    """A container, and how to ask it something."""

    def __init__(self, image: str, name: str) -> None:
        """Remember which container runs which image."""
        self.image = image
        self.name = name

    def try_(self, command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a shell command in it."""
        return subprocess.run(
            ["docker", "exec", "-i", self.name, "bash", "-c", command],
            input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def ask(self, command: str, stdin: str = "") -> str:
        """Run a shell command in it that has to succeed, and return what it says."""
        done = self.try_(command, stdin)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def release(self) -> dict[str, str]:
        """Return what /etc/os-release says."""
        lines = self.ask("cat /etc/os-release").splitlines()
        return {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines) if value}

    def repositories(self) -> dict[str, dict[str, bool]]:
        """Return dnf's own view of its repositories."""
        return json.loads(self.ask("python3 -", REPOSITORIES))

    def is_ubi(self) -> bool:
        """Tell whether it has UBI's repositories only, a part of EL."""
        return any(name.startswith("ubi-") for name in self.repositories())

    def is_stand_in(self) -> bool:
        """Tell whether it says that it is the stand-in."""
        return self.release().get("VARIANT_ID") == "stand-in"

    def install(self, package: str) -> None:
        """Install a package, or skip the test where the repositories are a subset of EL's."""
        done = self.try_(f"dnf -y install {package} && rpm -q --whatprovides {package}")
        if done.returncode and self.is_ubi():
            pytest.skip(f"UBI's repositories have no {package}")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"


@pytest.fixture(scope="module", params=IMAGES)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Start a container of the image; it goes away whatever happens."""
    name = f"tenfold-img-contract-{uuid.uuid4().hex[:8]}"
    try:
        subprocess.run(
            ["docker", "run", "--detach", "--name", name, *RUN, request.param, "/usr/lib/systemd/systemd"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        host = Host(request.param, name)
        # In the first moments systemctl finds no systemd to wait for.
        for _ in range(50):
            if host.try_("systemctl is-system-running --wait").stdout.strip():
                break
            time.sleep(0.1)
        yield host
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=False, capture_output=True)


# The tests run in this order: those that install packages come after those that look at the base.


def test_systemd_runs(host: Host) -> None:
    failed = host.ask("systemctl --failed --no-legend")
    assert host.ask("systemctl is-system-running --wait || :") == "running", failed
    assert int(re.findall(r"\d+", host.ask("systemctl --version"))[0]) >= 252


def test_both_names_of_systemd(host: Host) -> None:
    assert (
        host.ask("test -x /lib/systemd/systemd && test -x /usr/lib/systemd/systemd && readlink -f /lib") == "/usr/lib"
    )


def test_the_journal_works(host: Host) -> None:
    host.ask("systemd-run --wait --unit=contract echo the-journal-works")
    assert "the-journal-works" in host.ask("journalctl --no-pager --unit=contract")


def test_release(host: Host) -> None:
    release = host.release()
    assert release["VERSION_ID"].split(".")[0] in {"9", "10"}
    assert release["ID"] == "rhel" or "rhel" in release["ID_LIKE"].split()
    assert re.search(r"\brelease (9|10)\b", host.ask("cat /etc/redhat-release"))
    assert host.ask("readlink -f /etc/system-release") == host.ask("readlink -f /etc/redhat-release")
    assert host.ask("rpm -E %rhel") == release["VERSION_ID"].split(".")[0]


def test_ansible_sees_the_family(host: Host) -> None:
    if not shutil.which("ansible"):
        pytest.skip("there is no ansible on the PATH")
    said = subprocess.run(
        ["ansible", "all", "-i", f"{host.name},", "-c", "community.docker.docker", "-m", "setup"],
        capture_output=True, text=True, check=True, env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
    ).stdout  # fmt: skip
    facts = json.loads(said[said.index("{") :])["ansible_facts"]
    assert facts["ansible_os_family"] == "RedHat"
    assert facts["ansible_distribution_major_version"] in {"9", "10"}
    assert facts["ansible_pkg_mgr"] == "dnf"
    assert facts["ansible_service_mgr"] == "systemd"


def test_python(host: Host) -> None:
    assert host.ask("python3 -c 'import sys; print(sys.version_info >= (3, 9))'") == "True"
    host.ask("python3 -c 'import dnf, rpm'")


def test_layout(host: Host) -> None:
    assert host.ask("readlink -f /bin /sbin /lib64 /usr/lib64").split() == [
        "/usr/bin",
        "/usr/sbin",
        "/usr/lib64",
        "/usr/lib64",
    ]
    assert host.ask("readlink -f /bin/sh") == "/usr/bin/bash"
    assert host.ask("ls /usr/lib64/libcrypto.so.3")
    assert host.ask("cat /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem").count("BEGIN CERTIFICATE") > 50


@pytest.mark.parametrize("path", ["/etc/sysconfig", "/usr/lib/systemd/system", "/usr/lib64", "/etc/yum.repos.d"])
def test_rpm_owns(host: Host, path: str) -> None:
    host.ask(f"test -d {path} && rpm -qf {path}")


@pytest.mark.parametrize("program", ["dpkg", "apt-get", "gcc", "make"])
def test_absent(host: Host, program: str) -> None:
    assert host.try_(f"command -v {program}").returncode != 0


def test_system_users(host: Host) -> None:
    assert host.try_("getent passwd memcached").returncode != 0
    # The numbers below 201 are the distribution's: a user that a role makes is above them.
    uid = int(host.ask("useradd --system --no-create-home contract && id -u contract && userdel contract"))
    assert 201 <= uid <= 999
    assert host.ask("id -un 65534") == "nobody"
    assert "wheel" in host.ask("getent group wheel")


def test_root_is_asked_for_no_password(host: Host) -> None:
    if host.try_("command -v sudo").returncode:
        host.install("sudo")
    assert host.ask("sudo -n -u nobody id -un") == "nobody"


def test_packages_are_checked(host: Host) -> None:
    enabled = {name: repo for name, repo in host.repositories().items() if repo["enabled"]}
    assert enabled
    assert all(repo["gpgcheck"] for repo in enabled.values())


def test_crb_is_off(host: Host) -> None:
    if host.is_ubi():
        pytest.skip("UBI has no crb repository")
    crb = [repo for name, repo in host.repositories().items() if name == "crb" or name.startswith("codeready-builder")]
    assert crb
    assert not any(repo["enabled"] for repo in crb)


def test_presets(host: Host) -> None:
    assert "disable *" in host.ask("cat /usr/lib/systemd/system-preset/99-*.preset").splitlines()


@pytest.mark.parametrize(
    "package",
    [
        *BUILD_PACKAGES,
        "cyrus-sasl-devel",
        "xz",
        "tar",
        "bzip2",
        "procps-ng",
        "iproute",
        "openssl",
        "perl-IO-Socket-SSL",
    ],
)
def test_package_name(host: Host, package: str) -> None:
    host.install(package)


def test_signature(host: Host) -> None:
    assert host.ask("rpm -q --queryformat '%{SIGPGP:pgpsig}%{RSAHEADER:pgpsig}' make") != "(none)(none)"


def test_compiling(host: Host) -> None:
    host.ask(f"dnf -y install {' '.join(BUILD_PACKAGES)}")
    host.ask(
        "cat > /root/contract.c && cd /root && gcc -O2 -o contract contract.c $(pkg-config --cflags --libs openssl)",
        PROGRAM,
    )
    host.ask("/root/contract")
    assert host.ask("pkg-config --variable=libdir openssl") == "/usr/lib64"


def test_installing_starts_nothing(host: Host) -> None:
    host.install("firewalld")
    assert host.ask("systemctl is-active firewalld || :") == "inactive"
    # Enabled is what the distribution's presets say and not what the package would like to be.
    state, preset = host.ask("systemctl list-unit-files --no-legend firewalld.service").split()[1:3]
    assert state == preset
    assert host.ask("rpm -qf /usr/lib/systemd/system/firewalld.service").startswith("firewalld-")


def test_a_new_unit_is_seen(host: Host) -> None:
    host.install("haproxy")
    assert host.ask("systemctl show --property=LoadState --value haproxy") == "loaded"
    assert host.ask("systemctl is-enabled haproxy || :") == "disabled"


def test_stand_in_says_so(host: Host) -> None:
    if not host.is_stand_in():
        pytest.skip("this is a real image")
    assert "stand-in" in host.release()["PRETTY_NAME"]
    for path in ("/etc/motd", "/etc/redhat-release"):
        assert "stand-in" in host.ask(f"cat {path}")
    inspected = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{json .Config.Labels}}", host.image],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "stand-in" in inspected.stdout


def test_stand_in_is_whole(host: Host) -> None:
    if not host.is_stand_in():
        pytest.skip("this is a real image")
    assert host.ask("rpm -Va") == ""
    assert host.try_("find /var/lib/dpkg /etc/apt /usr/lib/apt -maxdepth 0").stdout == ""
    # rpm's names of libraries are Debian's in the dependencies alone: all of them must be there.
    assert host.try_("dnf -q repoquery --unsatisfied").stdout.strip() == ""

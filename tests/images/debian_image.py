"""The Debian 12 test host: an ordinary minimal Debian with systemd, bootstrapped by mmdebstrap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import (
    CA_BUNDLE,
    CODENAME,
    HERE,
    MASKED_UNITS,
    BuildError,
    Image,
    run,
    step,
)
from debs import Apt

PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
    "usr-is-merged",
    "xz-utils",
)
# What a Debian without any of the above consists of (debootstrap's "minbase").
MINBASE = ("?or(?essential,?priority(required))", "apt")

# Documentation is a third of such a tree and no test reads it; copyright files stay.
DPKG_OPTIONS = (
    "force-unsafe-io",  # a container's tree is not worth waiting for the disk
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
)
# Debian's own timers would start apt in the middle of a test.
MASKED = (
    *MASKED_UNITS,
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
)


def build(apt: Apt, debs: Sequence[Path], work: Path) -> Path:
    """Bootstrap the tree from the downloaded packages and return it as a tar archive."""
    tar = work / "rootfs.tar"
    authorities = work / "authorities"
    _machine_authorities(authorities)
    seed = work / "seed"
    seed.mkdir()
    for deb in debs:
        (seed / deb.name).hardlink_to(deb)
    # Hooks get the path of the tree as $1.
    hooks = {
        "setup": [
            f'mkdir -p "$1/var/cache/apt/archives" && cp {seed}/*.deb "$1/var/cache/apt/archives/"',
        ],
        "customize": [
            f'ls "$1/var/cache/apt/archives" | grep "deb$" | sort > {work}/used',
            f'cp {authorities}/* "$1/usr/local/share/ca-certificates/" && chroot "$1" update-ca-certificates',
            f'for unit in {" ".join(MASKED)}; do ln -sf /dev/null "$1/etc/systemd/system/$unit"; done',
            # Every container is a machine of its own: systemd gives it an id at its first boot.
            ': > "$1/etc/machine-id"; rm -f "$1/var/lib/dbus/machine-id" "$1/etc/hostname" "$1/etc/resolv.conf"',
        ],
    }
    with step("bootstrapping"):
        sources = apt.root / "debian.sources"
        run(
            [
                # In a mount namespace of its own: even if it is killed, no mount of /proc or /sys remains
                # in the tree, where removing the work folder would walk into it.
                "unshare", "--mount",
                "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}",
                # Directories merged from the start need no usrmerge, which would bring all of Perl.
                "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
                "--skip=download/empty,essential/unlink",
                *(f"--aptopt={line}" for line in apt.options.splitlines()),
                *(f"--dpkgopt={line}" for line in DPKG_OPTIONS),
                *(f"--{when}-hook={hook}" for when, each in hooks.items() for hook in each),
                CODENAME, tar, sources,
            ],
            env={"TMPDIR": str(work)},
        )  # fmt: skip
    used, resolved = (work / "used").read_text(encoding="utf-8").split(), sorted(deb.name for deb in debs)
    if used != resolved:
        raise BuildError(f"mmdebstrap used other packages than were resolved: {set(used) ^ set(resolved)}")
    return tar


def _machine_authorities(folder: Path) -> None:
    """Write each certificate of the machine's bundle as a file of its own.

    Two ways lead to a certificate in Debian: the one bundle (curl) and the folder of hashed links
    (Python's ssl). update-ca-certificates makes both, of single certificates.
    """
    folder.mkdir()
    for number, part in enumerate(CA_BUNDLE.read_text(encoding="utf-8").split("-----BEGIN CERTIFICATE-----")[1:]):
        (folder / f"machine-{number:03}.crt").write_text("-----BEGIN CERTIFICATE-----" + part, encoding="utf-8")


IMAGE = Image(
    repository="tenfold/debian12",
    packages=(*MINBASE, *PACKAGES),
    inputs=(HERE / "debian_image.py",),
    tools={"mmdebstrap": "mmdebstrap", "gpgv": "gpgv"},
    labels={"org.opencontainers.image.title": "Debian 12 with systemd, a test host"},
    build=build,
)

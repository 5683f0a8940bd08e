"""Debian packages, resolved and verified by apt on a private root.

The machine's own package state is neither used to resolve anything nor changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from common import CODENAME, BuildError, run

DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclasses.dataclass(frozen=True)
class Deb:
    """One resolved package, as the signed Packages index describes it."""

    file: str
    sha256: str


class Apt:
    """apt with the machine's Debian sources and keys, and an EMPTY dpkg status.

    The empty status makes an answer complete (nothing counts as installed already) and the same on
    every machine. apt itself checks the signatures: it refuses an index that is not signed by the
    key its source names, and the sha256 of each package comes from that index.
    """

    def __init__(self, root: Path) -> None:
        """Read the machine's sources; `root` keeps indexes and packages between builds."""
        self.root = root
        self.archives = root / "debs"
        self.sources = self._machine_sources()
        self.options = self._machine_options()

    @staticmethod
    def _machine_sources() -> str:
        """Return the machine's sources for this Debian release (main only), as deb822 text."""
        fields = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
        listing = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
        lines = run(listing).splitlines()
        if not lines:  # apt lists only the indexes it has
            run(["apt-get", "update", "-qq"])
            lines = run(listing).splitlines()
        stanzas = {}
        for line in sorted(lines):
            uri, suite, component, signed_by = line.split("|")
            if suite in {CODENAME, f"{CODENAME}-updates", f"{CODENAME}-security"} and component == "main":
                keyring = signed_by if signed_by.startswith("/") else DEBIAN_KEYRING
                stanzas[uri, suite] = (
                    f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {keyring}\n"
                )
        if CODENAME not in {suite for _, suite in stanzas}:
            raise BuildError(f"apt on this machine has no source for Debian {CODENAME} main.")
        return "\n".join(stanzas.values())

    @staticmethod
    def _machine_options() -> str:
        """Return how the machine's apt fetches (proxies, checks): the images' apt needs the same."""
        own = ("IndexTargets", "CompressionTypes", "Changelogs", "cdrom", "Languages", "GzipIndexes")
        lines = run(["apt-config", "dump", "--no-empty", "Acquire"]).splitlines()
        kept = [line for line in lines if not line.startswith(tuple(f"Acquire::{name}" for name in own))]
        return "\n".join([*kept, 'Acquire::Languages "none";', ""])

    def _apt_get(self, *words: str) -> str:
        return run(["apt-get", *words], env={"APT_CONFIG": str(self.root / "apt.conf")})

    def update(self) -> None:
        """Fetch the indexes and verify their signatures."""
        for name in ("state/lists/partial", "cache", "debs/partial", "none/partial"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "status").write_text("", encoding="utf-8")
        (self.root / "debian.sources").write_text(self.sources, encoding="utf-8")
        # APT_CONFIG is read before everything else: it leads apt away from all of the machine's files.
        (self.root / "apt.conf").write_text(
            f'Dir::State "{self.root}/state";\n'
            f'Dir::State::status "{self.root}/status";\n'
            f'Dir::Cache "{self.root}/cache";\n'
            f'Dir::Cache::archives "{self.archives}";\n'
            f'Dir::Etc::sourcelist "{self.root}/debian.sources";\n'
            + "".join(
                f'Dir::Etc::{name} "/dev/null";\n' for name in ("sourceparts", "parts", "main", "preferencesparts")
            )
            + 'APT::Sandbox::User "root";\n'
            + 'APT::Install-Recommends "false";\n'
            + 'Acquire::ForceHash "SHA256";\n'
            + self.options,
            encoding="utf-8",
        )
        self._apt_get("update", "-qq")

    def resolve(self, packages: Sequence[str]) -> list[Deb]:
        """Return the packages and everything they depend on (no recommendations), sorted."""
        # --print-uris leaves out what the archive folder has already: show it an empty one.
        archives = f"Dir::Cache::archives={self.root}/none"
        debs = []
        for line in self._apt_get("install", "-y", "-qq", "--print-uris", "-o", archives, *packages).splitlines():
            _uri, file, _size, digest = line.split()
            algorithm, _, sha256 = digest.partition(":")
            if algorithm != "SHA256":
                raise BuildError(f"apt knows no sha256 of {file}")
            debs.append(Deb(file, sha256))
        return sorted(debs, key=lambda deb: deb.file)

    def fetch(self, packages: Sequence[str], debs: Sequence[Deb]) -> list[Path]:
        """Download what the cache lacks, and check every file against the index's sha256."""
        paths = [self.archives / deb.file for deb in debs]
        for deb, path in zip(debs, paths, strict=True):
            if path.exists() and _sha256(path) != deb.sha256:
                path.unlink()
        self._apt_get("install", "-y", "-qq", "--download-only", *packages)
        for deb, path in zip(debs, paths, strict=True):
            if _sha256(path) != deb.sha256:
                raise BuildError(f"{path} has not the sha256 of Debian's signed index: remove it and try again.")
        return paths


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

#!/usr/bin/env python3
"""Fetch the source archives of the tests as Debian source packages, through the machine's own apt.

Usage: ``fetch.py DIRECTORY``. The archives and checksums are in ``sources.toml``. apt is run with an
index of its own, so that the machine's list of sources stays as it is.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def main() -> int:
    """Fetch what is missing; give the exit status."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    wanted = tomllib.loads(Path(__file__).with_name("sources.toml").read_text())
    missing = {name: want for name, want in wanted.items() if not intact(target / name, want)}
    for suite in sorted({want["suite"] for want in missing.values()}):
        fetch(suite, {want["package"] for want in missing.values() if want["suite"] == suite}, target)
    broken = [name for name, want in missing.items() if not intact(target / name, want)]
    for name in broken:
        print(
            f"error: {name} is missing or not the one named in sources.toml (sha256 differs)",
            file=sys.stderr,
        )
    print(f"{len(wanted) - len(broken)} archives in {target}")
    return 1 if broken else 0


def intact(path: Path, want: dict[str, str]) -> bool:
    """Tell whether an archive is there, with the checksum it must have."""
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == want["sha256"]


def fetch(suite: str, packages: set[str], target: Path) -> None:
    """Download the original archives of `packages` from one suite, checked by apt's signatures."""
    with own_index("deb-src", suite) as (root, options):
        apt(["source", "--download-only", *options, *sorted(packages)], root / "download")
        for archive in (root / "download").glob("*.orig.tar.*"):
            if not archive.name.endswith(".asc"):
                (target / archive.name).write_bytes(archive.read_bytes())


@contextmanager
def own_index(kind: str, suite: str) -> Iterator[tuple[Path, list[str]]]:
    """Give a scratch folder with a folder ``download``, and the options that let apt use an index in it.

    :param kind: ``deb`` for packages, ``deb-src`` for their sources.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for folder in ("lists/partial", "parts", "download"):
            (root / folder).mkdir(parents=True)
        (root / "sources.list").write_text(f"{kind} [signed-by={KEYRING}] {mirror()} {suite} main\n")
        options = [
            f"--option=Dir::Etc::SourceList={root}/sources.list",
            f"--option=Dir::Etc::SourceParts={root}/parts",
            f"--option=Dir::State::Lists={root}/lists",
            "--option=APT::Sandbox::User=root",  # _apt can't write into the scratch folder
        ]
        apt(["update", *options], root)
        yield root, options


def apt(command: list[str], folder: Path) -> None:
    """Run apt-get in `folder`; end the program with its words when it fails."""
    done = subprocess.run(["apt-get", "--quiet", *command], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"apt-get {command[0]} failed: {done.stderr.strip()}")


def mirror() -> str:
    """Give the address of the Debian mirror that this machine uses already."""
    apt_folder = Path("/etc/apt")
    lists = [*apt_folder.glob("sources.list.d/*"), apt_folder / "sources.list"]
    for path in filter(Path.is_file, lists):
        if found := re.search(r"^(?:URIs:|deb(?:\s+\[.*?\])?)\s+(\S+/debian/?)\s", path.read_text(), re.M):
            return found[1]
    sys.exit("no Debian mirror in /etc/apt: the tests fetch their sources as Debian source packages")


if __name__ == "__main__":
    sys.exit(main())

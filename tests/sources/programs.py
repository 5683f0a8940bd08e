#!/usr/bin/env python3
"""Make the archives that upstream publishes of Prometheus and its exporters, out of Debian's packages.

Usage: ``programs.py DIRECTORY``. It prints JSON for the variable ``monitoring_programs`` of the role monitoring:
for each program its version, the archive and the archive's sha256. The packages are checked by apt's signatures.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from fetch import apt, own_index

# What an archive of upstream holds, and the package that has it in Debian.
PROGRAMS = {
    "node_exporter": ("prometheus-node-exporter", {"node_exporter": "prometheus-node-exporter"}),
    "prometheus": ("prometheus", {"prometheus": "prometheus", "promtool": "promtool"}),
    "alertmanager": ("prometheus-alertmanager", {"alertmanager": "prometheus-alertmanager", "amtool": "amtool"}),
}
SUITE = "bookworm"


def main() -> int:
    """Make what is missing; give the exit status."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    note = target / "programs.json"
    if not note.exists():
        note.write_text(json.dumps(make(target), indent=1))
    print(json.dumps(json.loads(note.read_text())))
    return 0


def make(target: Path) -> dict[str, dict[str, str]]:
    """Make all archives in a folder; give what describes them."""
    made = {}
    with own_index("deb", SUITE) as (root, options):
        apt(["download", *options, *(package for package, _files in PROGRAMS.values())], root / "download")
        for name, (package, files) in PROGRAMS.items():
            (deb,) = (root / "download").glob(f"{package}_*.deb")
            version = re.findall(r"[0-9]+(?:[.][0-9]+)+", deb.name)[0]
            archive = target / f"{name}-{version}.linux.tar.gz"
            archive.write_bytes(packed(deb, f"{name}-{version}.linux", files))
            sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
            made[name] = {"version": version, "url": archive.as_uri(), "sha256": sha256}
    return made


def packed(deb: Path, folder: str, files: dict[str, str]) -> bytes:
    """Give an archive of programs of a package, the same one each time."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["dpkg-deb", "--extract", deb, scratch], check=True)
        with (
            gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, compresslevel=1) as stream,
            tarfile.open(fileobj=stream, mode="w") as archive,
        ):
            for name, file in files.items():
                content = (Path(scratch) / "usr/bin" / file).read_bytes()
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mode = len(content), 0o755
                archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


if __name__ == "__main__":
    sys.exit(main())

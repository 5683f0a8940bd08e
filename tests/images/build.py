"""Build a test host's image from Debian packages, without a registry, and print its reference.

    python tests/images/build.py el-stand-in
    python tests/images/build.py debian

An image carries the hash of its recipe (this folder's inputs, the machine's apt sources and CA
bundle) as a label. If the engine has an image with that label, it is the answer: about a second and
no network. `--refresh` asks the mirrors again, and builds anew only if a package's version changed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import debian_image
import stand_in
from common import (
    CA_BUNDLE,
    HERE,
    BuildError,
    Image,
    install_tools,
    require_debian,
    run,
    step,
)
from debs import Apt, Deb

IMAGES = {"debian": debian_image.IMAGE, "el-stand-in": stand_in.IMAGE}
RECIPE_LABEL = "tenfold.stack.recipe"
SHARED_INPUTS = (HERE / "build.py", HERE / "common.py", HERE / "debs.py")


def recipe(image: Image, apt: Apt) -> str:
    """Hash everything that decides an image's content, except the versions a mirror offers."""
    digest = hashlib.sha256(f"{apt.sources}\n{apt.options}\n".encode())
    digest.update(CA_BUNDLE.read_bytes())
    for start in (*SHARED_INPUTS, *image.inputs):
        files = [start] if start.is_file() else sorted(path for path in start.rglob("*") if not path.is_dir())
        for path in files:
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            kind = "link" if path.is_symlink() else "program" if os.access(path, os.X_OK) else "file"
            digest.update(f"{path.relative_to(HERE)} {kind} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def find(repository: str, recipe_hash: str) -> str | None:
    """Return the newest image of this recipe in the engine."""
    found = run(
        ["docker", "image", "ls", "--filter", f"label={RECIPE_LABEL}={recipe_hash}",
         "--format", "{{.Repository}}:{{.Tag}}", repository]
    ).split()  # fmt: skip
    return found[0] if found else None


def load(rootfs: Path, reference: str, labels: dict[str, str]) -> None:
    """Give a tree to the engine as an image.

    Not `docker import`: that knows no STOPSIGNAL in older engines, and without the right one each
    `docker stop` of a systemd container waits for its time-out.
    """
    with rootfs.open("rb") as stream:
        layer = hashlib.file_digest(stream, "sha256").hexdigest()
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "created": datetime.datetime.now(datetime.UTC).isoformat(),
            "config": {
                "Cmd": ["/usr/lib/systemd/systemd"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container=docker"],
                "StopSignal": "SIGRTMIN+3",
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
            "history": [{"created_by": "tests/images/build.py"}],
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    with (
        subprocess.Popen(["docker", "load", "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as engine,
        tarfile.open(fileobj=engine.stdin, mode="w|") as archive,
    ):
        for name, content in (("config.json", config), ("manifest.json", manifest)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        archive.add(rootfs, "layer.tar")
    if engine.returncode != 0:
        raise BuildError("The container engine refused the image; its message is above.")


def lock_text(debs: list[Deb]) -> str:
    """Return a resolved closure as text in the form that `sha256sum --check` reads."""
    return "".join(f"{deb.sha256}  {deb.file}\n" for deb in debs)


def forget_old_packages(cache: Path, apt: Apt) -> None:
    """Remove the downloaded packages that no image's lock names any longer."""
    locked = {
        line.split()[1] for lock in cache.glob("*.lock") for line in lock.read_text(encoding="utf-8").splitlines()
    }
    for deb in apt.archives.glob("*.deb"):
        if deb.name not in locked:
            deb.unlink()


@contextlib.contextmanager
def exclusive(cache: Path) -> Iterator[None]:
    """Let one build at a time use the cache folder, and clear up after one that was killed."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "busy").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for abandoned in cache.glob("work-*"):
            shutil.rmtree(abandoned)
        yield


def ensure(image: Image, cache: Path, refresh: bool) -> str:
    """Return the reference of the image, after building it if the engine has none of its recipe."""
    require_debian()
    apt = Apt(cache / "apt")
    recipe_hash = recipe(image, apt)
    if not refresh and (found := find(image.repository, recipe_hash)):
        return found
    with exclusive(cache):
        if not refresh and (found := find(image.repository, recipe_hash)):
            return found  # another process built it while this one waited
        install_tools(image.tools)
        with step("resolving packages"):
            apt.update()
            debs = apt.resolve(image.packages)
        lock = lock_text(debs)
        reference = f"{image.repository}:{hashlib.sha256((recipe_hash + lock).encode()).hexdigest()[:12]}"
        if reference == find(image.repository, recipe_hash):
            return reference
        with step(f"downloading and checking {len(debs)} packages"):
            files = apt.fetch(image.packages, debs)
        (cache / f"{image.repository.rpartition('/')[2]}.lock").write_text(lock, encoding="utf-8")
        forget_old_packages(cache, apt)
        work = Path(tempfile.mkdtemp(prefix="work-", dir=cache))
        try:
            rootfs = image.build(apt, files, work)
            with step("loading into the engine"):
                load(rootfs, reference, {RECIPE_LABEL: recipe_hash, **image.labels})
        finally:
            shutil.rmtree(work)
    return reference


def main() -> int:
    """Print the image's reference, alone, on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(IMAGES))
    parser.add_argument("--refresh", action="store_true", help="look for newer packages")
    arguments = parser.parse_args()
    os.umask(0o022)  # what is written here is read in the image by everybody
    # An orderly end on a job's time-out too, so that the working tree is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cache = Path(os.environ.get("TENFOLD_CACHE") or HERE.parents[1] / ".cache").absolute() / "images"
    try:
        with step(f"{arguments.name} is ready"):
            reference = ensure(IMAGES[arguments.name], cache, arguments.refresh)
    except (BuildError, OSError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    print(reference)
    return 0


if __name__ == "__main__":
    sys.exit(main())

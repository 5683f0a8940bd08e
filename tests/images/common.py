"""Progress, subprocesses and tools: what every part of the image build uses."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from debs import Apt

HERE = Path(__file__).resolve().parent
CODENAME = "bookworm"
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# Units without sense in a container, or that would wake up in the middle of a test.
MASKED_UNITS = (
    "console-getty.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "fstrim.timer",
    "getty.target",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-udevd.service",
)
STARTED = time.monotonic()


class BuildError(RuntimeError):
    """A build that cannot go on; the message says what to do about it."""


@dataclasses.dataclass(frozen=True)
class Image:
    """What one image is made from and how; `build.py` does the rest the same way for each."""

    repository: str
    packages: Sequence[str]  # Debian's names of the root packages
    inputs: Sequence[Path]  # files (or folders of files) of this project that decide the content
    tools: Mapping[str, str]  # program -> the Debian package it comes from
    labels: Mapping[str, str]
    build: Callable[[Apt, Sequence[Path], Path], Path]  # (apt, .debs, work folder) -> tar of the tree


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Report one step and how long it took on stderr: stdout carries the image reference alone."""
    began = time.monotonic()
    yield
    now = time.monotonic()
    print(f"[{now - STARTED:6.1f} s] {text} ({now - began:.1f} s)", file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    """Run a command and return its output; a failure carries the tail of what the command said."""
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C", **(env or {})},
        process_group=0,
    ) as process:
        try:
            output, errors = process.communicate()
        except BaseException:
            # Interrupted: let the command and its children end in order too, before its files are removed.
            os.killpg(process.pid, signal.SIGTERM)
            raise
    if process.returncode != 0:
        said = [line for line in (errors + output).splitlines() if not line.startswith("warning:")]
        raise BuildError(f"{Path(command[0]).name} failed ({process.returncode}):\n  " + "\n  ".join(said[-20:]))
    return output


def require_debian() -> None:
    """Refuse early and plainly where the build cannot work."""
    release = Path("/etc/os-release")
    text = release.read_text(encoding="utf-8") if release.exists() else ""
    if f"VERSION_CODENAME={CODENAME}" not in text:
        raise BuildError(
            f"The image is made from Debian {CODENAME}'s packages by Debian {CODENAME}'s tools, and this "
            "is another system. Build it there, or use a real image from a registry."
        )
    if os.geteuid() != 0:
        raise BuildError("The image's files belong to many users: build it as root.")


def install_tools(tools: Mapping[str, str]) -> None:
    """Install what is missing through apt-get; `tools` maps a program to its Debian package."""
    missing = sorted({package for program, package in tools.items() if not shutil.which(program)})
    if not missing:
        return
    with step(f"installing {', '.join(missing)}"):
        try:
            run(["apt-get", "update", "-qq"])
            run(
                ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
                env={"DEBIAN_FRONTEND": "noninteractive"},
            )
        except BuildError as error:
            raise BuildError(f"The build needs {', '.join(missing)}; apt could not install it. {error}") from error

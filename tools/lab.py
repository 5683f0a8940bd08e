#!/usr/bin/env python3
"""The commands behind the Makefile: make a lab on this machine, run the site or the tests in it.

Needs nothing but the system's Python. Everything it makes lives below one folder, ``.cache`` in the
checkout (``TENFOLD_CACHE``), and in containers and networks labelled ``tenfold.scenario``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import engine

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("TENFOLD_CACHE", ROOT / ".cache"))
VENV = CACHE / "venv"
STAND_IN = "el-stand-in"
# Programs that unit tests talk to or compare with.
DAEMONS = ("memcached", "bind9", "php-cli", "php-memcached", "pflogsumm", "chromium", "prometheus")

# Images with systemd that a person can name: `make test EL=alma9`. Any other reference is taken as
# it is. Debian has no well-kept image with systemd, so the lab builds its own from Debian's packages.
EL_IMAGES = {
    "rocky9": "rockylinux/rockylinux:9-ubi-init",
    "rocky10": "rockylinux/rockylinux:10-ubi-init",
    "alma9": "almalinux/9-init",
    "alma10": "almalinux/10-init",
    "ubi9": "redhat/ubi9-init",
    "ubi10": "redhat/ubi10-init",
}


class LabError(RuntimeError):
    """The lab can't be made; the message says what to do about it."""


class Timings:
    """Wall seconds of each step, told as they end and as one line at the end."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}

    def run(self, name: str, step: Callable[[], object]) -> object:
        """Run `step`, tell how it went, and return what it returned."""
        print(f"==> {name}", flush=True)
        start = time.monotonic()
        result = step()
        self.steps[name] = time.monotonic() - start
        told = f": {result}" if isinstance(result, str) else ""
        print(f"    {name} took {self.steps[name]:.1f} s{told}", flush=True)
        return result

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.steps.items())


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command with its output shown.

    :raises LabError: it ended with another status than 0.
    """
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=env, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(map(str, command))} ended with status {done.returncode}")


def output(*command: str | Path) -> str:
    """Run a command with its progress shown and return what it printed on standard output."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(map(str, command))} ended with status {done.returncode}")
    return done.stdout.strip()


def make_venv() -> str:
    """Install the locked tools, and make the checkout importable as the collection it is."""
    stamp = VENV / "requirements.txt"
    lock = ROOT / "requirements.txt"
    link = CACHE / "collections/ansible_collections/tenfold/stack"
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(ROOT)
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return "up to date"
    shutil.rmtree(VENV, ignore_errors=True)
    run(sys.executable, "-m", "venv", VENV)
    # Quiet, but a minute of silence makes people doubt.
    print("    installing the locked Python tools (about a minute)", flush=True)
    # What is never imported need not be compiled, and that is most of it.
    pip = (VENV / "bin/pip", "install", "-qq", "--disable-pip-version-check", "--no-compile")
    run(*pip, "--require-hashes", "--requirement", lock)
    shutil.copyfile(lock, stamp)
    return "installed"


def make_images() -> dict[str, str]:
    """Find or build the images of the test hosts.

    :return: the variables that name them to the scenarios and to the images' contract test.
    """
    build = ROOT / "tests/images/build.py"
    wanted = os.environ.get("EL") or "auto"
    image = EL_IMAGES.get(wanted, wanted)
    wheels = ""  # a real image has another Python, and fetches what suits that
    if wanted == "auto":
        image = EL_IMAGES["rocky9"] if _pull(EL_IMAGES["rocky9"]) else STAND_IN
    elif wanted != STAND_IN and not _pull(image):
        raise LabError(f"the image {image} can't be had: name another one in EL, or EL={STAND_IN}")
    if image == STAND_IN:
        print("    no registry of images answers: the RHEL family is a stand-in", flush=True)
        image = output(sys.executable, build, STAND_IN)
        wheels = str(CACHE / "wheels")
    return {
        "TENFOLD_WHEELS": wheels,
        "TENFOLD_IMAGE_EL": image,
        "TENFOLD_CONTRACT_IMAGE": image,
        "TENFOLD_IMAGE_DEBIAN": output(sys.executable, build, "debian"),
    }


def _pull(image: str) -> bool:
    try:
        done = subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def make_wheels() -> str:
    """Fetch the libraries of the mail report, for test hosts that reach no package index.

    They suit this Python, and so that of the stand-ins.
    """
    folder = CACHE / "wheels"
    project = ROOT / "roles/mail_report/files/mailreport"
    locks = [project / "requirements-build.txt", project / "requirements.txt"]
    wanted = "".join(lock.read_text() for lock in locks)
    stamp = folder / ".requirements.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return "up to date"
    shutil.rmtree(folder, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--require-hashes")
    for lock in locks:
        run(*pip, "--only-binary=:all:", "--dest", folder, "--requirement", lock)
    stamp.write_text(wanted)
    return "fetched"


def make_sources() -> str:
    """Fetch the source archives that the test hosts build from."""
    return output(sys.executable, ROOT / "tests/sources/fetch.py", CACHE / "sources")


def make_programs() -> str:
    """Make the archives of Prometheus and its exporters that the test hosts install."""
    return output(sys.executable, ROOT / "tests/sources/programs.py", CACHE / "programs")


def prepare(timings: Timings) -> dict[str, str]:
    """Make all that the site and the tests need.

    :return: the environment to run Molecule and the tests in.
    """
    timings.run("engine", lambda: engine.up(CACHE / "engine"))
    with ThreadPoolExecutor() as pool:  # one waits for the network while another compiles
        venv = pool.submit(timings.run, "venv", make_venv)
        sources = pool.submit(timings.run, "sources", make_sources)
        wheels = pool.submit(timings.run, "wheels", make_wheels)
        programs = pool.submit(make_programs)
        images = pool.submit(timings.run, "images", make_images)
        venv.result()
        sources.result()
        wheels.result()
        image_env = images.result()
    assert isinstance(image_env, dict)
    return environment() | image_env | {"TENFOLD_PROGRAMS": programs.result()}


def environment() -> dict[str, str]:
    """Give the environment in which the installed tools find this checkout as a collection."""
    return os.environ | {
        "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
        "TENFOLD_CACHE": str(CACHE),
        "TENFOLD_SOURCES": str(CACHE / "sources"),
        "ANSIBLE_HOME": str(CACHE / "ansible"),
        "ANSIBLE_COLLECTIONS_PATH": str(CACHE / "collections"),
        "MOLECULE_COMMAND_BORDERS": "false",  # they break the tables of a play
        "MOLECULE_GLOB": "molecule/*/molecule.yml",
        "PYTHONPATH": str(CACHE / "collections"),
    }


def site(tags: str) -> None:
    """Bring up the example site, verify it, and leave it running."""
    timings = Timings()
    env = prepare(timings)
    molecule = VENV / "bin/molecule"
    only = ("--tags", tags) if tags else ()
    if tags:
        env |= {"ANSIBLE_RUN_TAGS": tags}  # for what takes no arguments: to verify what is not there would fail
    steps: list[tuple[str, tuple[str, ...]]] = [
        ("create", ()),
        ("converge", ("--", "--skip-tags", "verify", *only)),
        ("verify", ()),
    ]
    if not tags:
        steps.insert(2, ("side-effect", ()))  # a node leaves and one joins while a client works
    for step, extra in steps:
        timings.run(step, partial(run, molecule, step, "-s", "site", *extra, env=env))
    print(f"\nThe site runs; what you can try is in README.md. `make clean` ends it.\nWall time: {timings}")


def bench() -> None:
    """Measure, side by side, and print tables."""
    timings = Timings()
    env = prepare(timings)
    timings.run("daemons", make_daemons)
    for command in ("build_once.py --literal", "pool.py", "mail.py", "mail_ingest.py", "mail_report.py"):
        program, *options = command.split()
        run(VENV / "bin/python", f"tests/bench/{program}", *options, env=env)


def make_daemons() -> str:
    """Install the distribution's programs that the unit tests talk to."""
    if all(map(shutil.which, ("memcached", "named", "php", "pflogsumm", "chromium", "prometheus"))):
        return "there already"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"not there: the tests that need them will be skipped; install {', '.join(DAEMONS)} to run them"
    # RUNLEVEL keeps them from being started: the tests start their own, on ports of their own.
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *DAEMONS, env=env)
    return "installed"


def test(scenario: str) -> None:
    """Run everything that proves the collection, or one scenario of it."""
    timings = Timings()
    env = prepare(timings)
    if not scenario:
        timings.run("daemons", make_daemons)
    chosen = ("tests/test_scenarios.py", "--scenario", scenario) if scenario else ("tests",)
    os.chdir(ROOT)
    # The runner takes this process's place: its closing lines are the last that is printed.
    os.execve(VENV / "bin/pytest", ["pytest", *chosen], env)


def clean() -> None:
    """End the lab's containers, networks and images, the engine if it was started here, and the cache."""
    if engine.answers():
        made = "label=tenfold.scenario"
        for kind, lister, remover in (
            ("containers", ("ps", "--all", "--filter", made), ("rm", "--force", "--volumes")),
            ("networks", ("network", "ls", "--filter", made), ("network", "rm")),
            ("images", ("images", "--filter", "label=tenfold.stack.recipe"), ("rmi", "--force")),
        ):
            if found := output("docker", *lister, "--quiet").split():
                output("docker", *remover, *dict.fromkeys(found))
                print(f"removed {len(found)} {kind}")
    print(engine.down(CACHE / "engine"))
    shutil.rmtree(CACHE, ignore_errors=True)


def main() -> int:
    """Run one command; give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("site").add_argument("--tags", default="")
    commands.add_parser("test").add_argument("--scenario", default="")
    commands.add_parser("bench")
    commands.add_parser("clean")
    commands.add_parser("venv")
    commands.add_parser("docs")
    args = parser.parse_args()
    try:
        match args.command:
            case "site":
                site(args.tags)
            case "test":
                test(args.scenario)
            case "bench":
                bench()
            case "clean":
                clean()
            case "venv":
                print(make_venv())
            case "docs":
                make_venv()
                for program in ("role_pages.py", "dashboards.py"):
                    run(VENV / "bin/python", f"tools/{program}")
    except (LabError, engine.EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The stand-in for an EL 9 host: Debian's binaries in RPMs of an EL layout, installed by dnf.

It executes the RHEL code path of the roles where no real image can be had. README.md says what it
is not.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import repack
from common import CA_BUNDLE, HERE, MASKED_UNITS, BuildError, Image, run, step
from debs import Apt

TABLE: dict[str, Any] = tomllib.loads(
    (HERE / "packages.toml").read_text(encoding="utf-8").replace("@TRIPLET@", repack.TRIPLET)
)
OVERLAY = HERE / "overlay"
REPOSITORIES = "usr/share/tenfold-stand-in/repo"
KEY = "/etc/pki/rpm-gpg/RPM-GPG-KEY-tenfold-stand-in"

# rpm's settings for this build alone. Debian's rpm would keep its database in the user's home.
MACROS = """\
%_topdir {work}/rpmbuild
%_rpmdir {work}/rpms
%_build_name_fmt %%{{NAME}}-%%{{VERSION}}-%%{{RELEASE}}.%%{{ARCH}}.rpm
%_binary_payload w3.zstdio
%_buildhost stand-in
%_dbpath /var/lib/rpm
%_gpg_name stand-in
%__gpg /usr/bin/gpg
%_gpg_path {work}/gpg
%vendor Tenfold stand-in
"""


def build(apt: Apt, debs: Sequence[Path], work: Path) -> Path:
    """Repack the packages, install the base with dnf and return the tree as a tar archive."""
    del apt
    work.joinpath(".rpmmacros").write_text(MACROS.format(work=work), encoding="utf-8")
    tree = work / "tree"
    tree.mkdir()
    key = _make_key(work)
    packages = repack.unpack_all(
        [deb for deb in debs if deb.name.split("_")[0] not in TABLE["exclude"]["debs"]],
        tree, TABLE["packages"] | TABLE["names"], TABLE["exclude"]["paths"],
    )  # fmt: skip
    _complete(packages, tree, key)
    with step(f"building {len(packages)} RPMs"):
        spec = work / "stand-in.spec"
        spec.write_text(repack.spec(packages.values(), TABLE["adjust"], tree, work / "lists"), encoding="utf-8")
        buildroot = work / "buildroot"
        run(["rpmbuild", "-bb", "--quiet", "--nodeps", "--buildroot", buildroot, spec], env=_environment(work))
        rpms = sorted((work / "rpms").glob("*.rpm"))
    with step("signing them"):
        run(["rpmsign", "--addsign", *rpms], env=_environment(work))
    repositories = _make_repositories(rpms, work)
    root = _install(repositories, key, work)
    shutil.copytree(repositories, root / REPOSITORIES)
    with step("archiving the tree"):
        tar = work / "rootfs.tar"
        run(["tar", "--numeric-owner", "--sort=name", "-C", root, "-cf", tar, "."])
    return tar


def _environment(work: Path) -> dict[str, str]:
    """Return the environment in which rpm and dnf read this build's macros and nobody else's."""
    return {"HOME": str(work), "GNUPGHOME": str(work / "gpg"), "LC_ALL": "C.UTF-8"}


def _make_key(work: Path) -> Path:
    """Make the key that signs this build's packages; the private part goes away with the work folder."""
    (work / "gpg").mkdir(mode=0o700)
    with step("making a signing key"):
        gpg = ["gpg", "--batch", "--quiet", "--passphrase", ""]
        run([*gpg, "--quick-gen-key", "stand-in", "rsa2048", "sign", "never"], env=_environment(work))
        (work / "key").write_text(run([*gpg, "--armor", "--export", "stand-in"], env=_environment(work)))
        run(["gpgconf", "--kill", "all"], env=_environment(work))
    return work / "key"


def _complete(packages: dict[str, repack.Package], tree: Path, key: Path) -> None:
    """Add the packages that are the stand-in's own, and what EL's packages have and Debian's don't."""
    packages |= {name: repack.Package(name) for name in TABLE["own"]["packages"]}
    rules = TABLE["adjust"]
    if unknown := ({path.name for path in OVERLAY.iterdir()} | set(rules)) - set(packages):
        raise BuildError(f"packages.toml or overlay/ speaks of packages that do not exist: {sorted(unknown)}")
    # What this build and this machine alone know.
    generated = {
        ("tenfold-stand-in-release", KEY): key,
        ("ca-certificates", "/usr/share/pki/ca-trust-source/ca-bundle.pem"): CA_BUNDLE,
        ("ca-certificates", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"): CA_BUNDLE,
    }
    for (name, path), source in generated.items():
        place = tree / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        packages[name].files[path] = repack.File()
    rules["tenfold-stand-in-container"]["links"] = {
        f"/etc/systemd/system/{unit}": "/dev/null" for unit in MASKED_UNITS
    } | rules["tenfold-stand-in-container"]["links"]
    for package in packages.values():
        repack.add_overlay(package, OVERLAY / package.name, tree)
        repack.adjust(package, rules.get(package.name, {}), tree)
    shared = set(packages["filesystem"].files)
    for package in packages.values():
        if package.name != "filesystem":
            package.files = {
                path: entry for path, entry in package.files.items() if entry.kind != "%dir" or path not in shared
            }
    repack.resolve_dependencies(packages.values())


def _make_repositories(rpms: Sequence[Path], work: Path) -> Path:
    """Sort the packages into EL's repositories and index each."""
    folder = work / "repo"
    repo_of = {name: rules["repo"] for name, rules in TABLE["adjust"].items() if "repo" in rules}
    with step("indexing the repositories"):
        for name in ("baseos", "crb", "epel"):
            (folder / name).mkdir(parents=True)
        for rpm in rpms:
            name = rpm.name.rsplit("-", 2)[0]
            rpm.rename(folder / repo_of.get(name, "baseos") / rpm.name)
        for each in folder.iterdir():
            run(["createrepo_c", "--quiet", "--no-database", each])
    return folder


def _install(repositories: Path, key: Path, work: Path) -> Path:
    """Install the base packages into an empty tree, as an installer of EL does."""
    root = work / "root"
    config = work / "dnf.conf"  # none of the machine's settings or repositories
    config.write_text("[main]\n", encoding="utf-8")
    with step("installing the base with dnf"):
        # Package scripts redirect to it: without the device they would leave a file of that name.
        (root / "dev").mkdir(parents=True)
        run(["mknod", "-m", "666", root / "dev/null", "c", "1", "3"])
        run(["rpm", "--root", root, "--import", key], env=_environment(work))
        run(
            [
                "dnf", "-y", "-q", f"--config={config}", "--setopt=reposdir=/dev/null", "--noplugins",
                f"--installroot={root}", "--releasever=9",
                f"--repofrompath=base,{repositories / 'baseos'}",
                "--setopt=base.gpgcheck=1", f"--setopt=base.gpgkey={key.as_uri()}",
                "--setopt=install_weak_deps=False", "--setopt=keepcache=False", f"--setopt=cachedir={work / 'dnf'}",
                "install", *TABLE["install"]["packages"],
            ],
            env=_environment(work),
        )  # fmt: skip
        for leftover in [*root.glob("var/log/*.log"), *root.glob("etc/*-"), root / "etc/.pwd.lock"]:
            leftover.unlink()
        machine_id = root / "etc/machine-id"  # systemd gives each container its own
        machine_id.write_text("", encoding="utf-8")
        machine_id.chmod(0o444)
    return root


IMAGE = Image(
    repository="tenfold/el9-stand-in",
    packages=tuple(TABLE["packages"]),
    inputs=(HERE / "stand_in.py", HERE / "repack.py", HERE / "packages.toml", OVERLAY),
    tools={"rpmbuild": "rpm", "dnf": "dnf", "createrepo_c": "createrepo-c", "gpg": "gpg", "dpkg-deb": "dpkg"},
    labels={
        "org.opencontainers.image.title": "stand-in for an EL 9 host",
        "tenfold.stack.stand-in": "Debian packages in an EL 9 layout; not RHEL",
    },
    build=build,
)

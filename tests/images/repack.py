"""Turn Debian packages into RPMs of an EL layout: one .deb becomes one .rpm.

The trees of all packages are laid out side by side in one build root, at EL's paths, and one
rpmbuild with a subpackage for each packs them: some 20 s for everything, where a run of rpmbuild
for each package would take minutes. Debian's maintainer scripts are left out: they are written for
dpkg. What they would have done and EL's packages do too (users, presets) is said in packages.toml.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import posixpath
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from common import BuildError, run, step

TRIPLET = f"{os.uname().machine}-linux-gnu"
# Where a path of Debian's lies in the stand-in; the first match counts.
MOVES = (
    (f"/usr/lib/{TRIPLET}", "/usr/lib64"),
    (f"/lib/{TRIPLET}", "/usr/lib64"),
    ("/lib64", "/usr/lib64"),
    ("/lib", "/usr/lib"),
    ("/bin", "/usr/bin"),
    ("/sbin", "/usr/sbin"),
    ("/etc/ssl", "/etc/pki/tls"),
    ("/etc/default", "/etc/sysconfig"),
    ("/var/run", "/run"),
    ("/var/lock", "/run/lock"),
)
UNITS = "/usr/lib/systemd/system/"


@dataclasses.dataclass
class File:
    """One entry of a package's file list."""

    mode: int | None = 0o644  # None: a symbolic link has none
    owner: str = "root root"
    kind: str = ""  # "%dir", "%config(noreplace)" or nothing


@dataclasses.dataclass
class Package:
    """One RPM to be: made of a .deb, of an overlay folder, or of both."""

    name: str
    version: str = "9"
    release: str = "1"
    summary: str = "Part of the stand-in for an EL 9 host"
    deb: str = ""
    serves: list[str] = dataclasses.field(default_factory=list)  # Debian's names that it answers to
    depends: list[list[str]] = dataclasses.field(default_factory=list)  # Debian's: all of (any of)
    provides: list[str] = dataclasses.field(default_factory=list)  # RPM's names
    requires: list[str] = dataclasses.field(default_factory=list)
    files: dict[str, File] = dataclasses.field(default_factory=dict)


def moved(path: str) -> str:
    """Return where a path of Debian's lies in the stand-in."""
    for old, new in MOVES:
        if path == old or path.startswith(old + "/"):
            return new + path.removeprefix(old)
    return path


def moved_target(link: str, target: str) -> str:
    """Return a symbolic link's target for the place the link moves to."""
    new = moved(posixpath.normpath(posixpath.join(posixpath.dirname(link), target)))
    return new if target.startswith("/") else posixpath.relpath(new, posixpath.dirname(moved(link)))


def _tar_stream(deb: Path, part: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of a .deb's control or data archive, decompressed by dpkg-deb."""
    with (
        subprocess.Popen(["dpkg-deb", part, deb], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            yield archive, member
    if process.returncode != 0:
        raise BuildError(f"dpkg-deb could not read {deb}")


def _read_control(deb: Path) -> tuple[dict[str, str], set[str]]:
    """Return a .deb's control fields and its configuration files."""
    texts = {}
    for archive, member in _tar_stream(deb, "--ctrl-tarfile"):
        if member.name in {"./control", "./conffiles"} and (stream := archive.extractfile(member)):
            texts[member.name] = stream.read().decode()
    fields = dict(re.findall(r"^([\w-]+): *(.*)$", texts["./control"], re.MULTILINE))
    return fields, set(texts.get("./conffiles", "").split())


def _alternatives(field: str) -> list[list[str]]:
    """Parse a Depends field, without its versions: all packages come from one consistent archive."""
    return [re.findall(r"(?:^|\|)\s*([a-z0-9][a-z0-9.+-]*)", group) for group in field.split(",") if group.strip()]


def _rewritten(path: str, content: bytes) -> bytes:
    """Correct the paths in the files that say them aloud."""
    if path.startswith(UNITS):
        return content.replace(b"/etc/default/", b"/etc/sysconfig/")
    if path.endswith(".pc"):
        return content.replace(f"lib/{TRIPLET}".encode(), b"lib64")
    return content


def unpack(deb: Path, tree: Path, names: Mapping[str, str], dropped: Sequence[str]) -> Package:
    """Lay a .deb's files out in the tree at EL's paths and return the package they make."""
    fields, conffiles = _read_control(deb)
    upstream, _, revision = fields["Version"].rpartition("-")
    if not upstream:
        upstream, revision = revision, "0"
    package = Package(
        name=names.get(fields["Package"], fields["Package"]),
        version=upstream.rpartition(":")[2].replace("-", "."),
        release=f"{revision}.standin",
        summary=fields["Description"],
        deb=fields["Package"],
        serves=[fields["Package"], *(name for group in _alternatives(fields.get("Provides", "")) for name in group)],
        depends=_alternatives(f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}"),
    )
    matches = re.compile("|".join(fnmatch.translate(pattern) for pattern in dropped)).match
    for archive, member in _tar_stream(deb, "--fsys-tarfile"):
        old = member.name.removeprefix(".").rstrip("/")
        path = moved(old)
        if not old or matches(path):
            continue
        place = tree / path[1:]
        if member.isdir():
            place.mkdir(parents=True, exist_ok=True)
            package.files.setdefault(path, File(member.mode, kind="%dir"))
            continue
        entry = File(member.mode)
        if member.mode & 0o2000 and member.gname != "root":
            entry.mode = member.mode & 0o5777 | 0o4000  # for groups that are Debian's alone EL has setuid root
        place.parent.mkdir(parents=True, exist_ok=True)
        if member.issym():
            entry.mode = None
            target = moved_target(old, member.linkname)
            if posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) == path:
                continue  # a link between two places that are one here, such as /lib64 and /lib/TRIPLET
        if os.path.lexists(place):
            raise BuildError(f"{path} of {package.name} is in another package too: exclude it in packages.toml")
        if member.issym():
            place.symlink_to(target)
        elif member.islnk():
            place.hardlink_to(tree / moved(member.linkname.removeprefix("."))[1:])
        else:
            stream = archive.extractfile(member)
            if stream is None:
                raise BuildError(f"{deb.name}: {old} is neither a file nor a link")
            with place.open("wb") as output:
                if member.size < 65536:
                    output.write(_rewritten(path, stream.read()))
                else:
                    shutil.copyfileobj(stream, output, 1 << 20)
            os.utime(place, (member.mtime, member.mtime))
        if old in conffiles:
            entry.kind = "%config(noreplace)"
        package.files[path] = entry
    return package


def unpack_all(
    debs: Sequence[Path], tree: Path, names: Mapping[str, str], dropped: Sequence[str]
) -> dict[str, Package]:
    """Unpack every .deb and compile the Python modules, as Debian does when it installs them."""
    with step(f"unpacking {len(debs)} packages"), ProcessPoolExecutor(os.cpu_count()) as pool:
        # The largest first, so that no core waits for the other at the end.
        ordered = sorted(debs, key=lambda deb: -deb.stat().st_size)
        jobs = [pool.submit(unpack, deb, tree, names, dropped) for deb in ordered]
        packages: dict[str, Package] = {}
        for package in (job.result() for job in jobs):
            if other := packages.get(package.name):
                raise BuildError(f"packages.toml calls both {other.deb} and {package.deb} {package.name}")
            packages[package.name] = package
    with step("compiling Python modules"):
        run([
            "/usr/bin/python3", "-m", "compileall", "-q", f"-j{os.cpu_count()}", "-s", tree, "-p", "/",
            "--invalidation-mode", "unchecked-hash", *tree.glob("usr/lib/python3*"),
        ])  # fmt: skip
    for package in packages.values():
        for path in [path for path in package.files if path.endswith(".py")]:
            folder, module = posixpath.split(path)
            compiled = f"{folder}/__pycache__/{module.removesuffix('.py')}.cpython-311.pyc"
            if (tree / compiled[1:]).exists():
                package.files[posixpath.dirname(compiled)] = File(0o755, kind="%dir")
                package.files[compiled] = File()
    return packages


def add_overlay(package: Package, overlay: Path, tree: Path) -> None:
    """Put a folder of files that mirrors their target paths over a package's own."""
    for source in sorted(overlay.rglob("*")):
        path = f"/{source.relative_to(overlay)}"
        place = tree / path[1:]
        if source.is_dir() and not source.is_symlink():
            place.mkdir(parents=True, exist_ok=True)
            package.files.setdefault(path, File(0o755, kind="%dir"))
            continue
        if os.path.lexists(place) and path not in package.files:
            raise BuildError(f"{path} in the overlay of {package.name} belongs to another package")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        shutil.copy2(source, place, follow_symlinks=False)
        if source.is_symlink():
            package.files[path] = File(None)
        else:
            kind = "%config(noreplace)" if path.startswith("/etc/") else ""
            package.files[path] = File(0o755 if os.access(source, os.X_OK) else 0o644, kind=kind)


def adjust(package: Package, rules: Mapping[str, Any], tree: Path) -> None:
    """Apply a package's entry in packages.toml; the keys are explained there."""
    for pattern in rules.get("drop", ()):
        for path in fnmatch.filter(package.files, pattern):
            if package.files.pop(path).kind != "%dir":
                (tree / path[1:]).unlink()
    for path, target in rules.get("links", {}).items():
        place = tree / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(target)
        package.files[path] = File(None)
    for path, replacements in rules.get("edit", {}).items():
        place = tree / path[1:]
        text = place.read_text(encoding="utf-8")
        for old, new in replacements.items():
            if old not in text:
                raise BuildError(f"{path} of {package.name} has no {old!r} to edit")
            text = text.replace(old, new)
        place.write_text(text, encoding="utf-8")
    if users := rules.get("sysusers"):
        path = f"/usr/lib/sysusers.d/{package.name}.conf"
        place = tree / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(f"{line}\n" for line in users), encoding="utf-8")
        package.files[path] = File()
    for path in rules.get("directories", ()):
        (tree / path[1:]).mkdir(parents=True, exist_ok=True)
        package.files[path] = File(0o755, kind="%dir")
    for path in rules.get("volatile", ()):
        package.files[path].kind = "%config(noreplace) %verify(not md5 size mtime)"
    for path in rules.get("ghosts", {}):
        package.files[path] = File(kind="%ghost")
    for path, attributes in (rules.get("attributes", {}) | rules.get("ghosts", {})).items():
        mode, _, owner = attributes.partition(" ")
        package.files[path].mode, package.files[path].owner = int(mode, 8), owner
    package.provides += rules.get("provides", ())
    package.requires += rules.get("requires", ())
    without = set(rules.get("without", ()))
    package.depends = [group for group in package.depends if not without.intersection(group)]


def resolve_dependencies(packages: Iterable[Package]) -> None:
    """Turn Debian's dependencies into RPM's, by way of `deb(NAME)`.

    Of alternatives the first that exists here is taken, as apt does; one that does not exist at all
    (dpkg, debconf and the like) serves Debian's maintainer scripts only.
    """
    packages = list(packages)
    existing = {name for package in packages for name in package.serves}
    for package in packages:
        package.provides += [f"deb({name})" for name in package.serves]
        for group in package.depends:
            if (first := next((name for name in group if name in existing), None)) and first not in package.serves:
                package.requires.append(f"deb({first})")


def spec(packages: Iterable[Package], adjustments: Mapping[str, Mapping[str, Any]], tree: Path, lists: Path) -> str:
    """Return the spec file of all packages; their file lists are written to the folder `lists`."""
    parts = [SPEC_HEAD.format(tree=tree)]
    lists.mkdir()
    for package in packages:
        rules = adjustments.get(package.name, {})
        (lists / package.name).write_text(
            "".join(f"{_list_line(path, entry)}\n" for path, entry in sorted(package.files.items())), encoding="utf-8"
        )
        tags = [f"Provides: {name}" for name in dict.fromkeys(package.provides)]
        tags += [f"Requires: {name}" for name in dict.fromkeys(package.requires)]
        if package.name not in {"filesystem", "setup"}:
            tags.append("Requires: filesystem")  # its links must be there before anything is unpacked
        origin = f"Debian's {package.deb}, repacked." if package.deb else "Made for the stand-in."
        parts.append(
            f"%package -n {package.name}\nVersion: {package.version}\nRelease: {package.release}\n"
            f"Summary: {_escaped(package.summary)}\nAutoReqProv: no\n" + "\n".join(tags) + "\n"
            f"%description -n {package.name}\n{origin}\n"
            f"%files -n {package.name} -f {lists / package.name}\n" + _scripts(package, rules, tree)
        )
    return "\n".join(parts)


# Debian's binaries stay as they are: nothing is stripped, compressed or searched for dependencies.
SPEC_HEAD = """\
%global __os_install_post %{{nil}}
%global debug_package %{{nil}}
%global _build_id_links none
Name: tenfold-stand-in
Version: 9
Release: 1
Summary: Debian packages in an EL 9 layout
License: see /usr/share/doc/PACKAGE/copyright
%description
Debian packages in an EL 9 layout.
%install
rmdir %{{buildroot}} 2>/dev/null || :
mv {tree} %{{buildroot}}
"""


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _list_line(path: str, entry: File) -> str:
    """Return a line of a %files list; rpm takes a path there as a pattern."""
    pattern = _escaped(re.sub(r"([*?[{])", r"[\1]", path))
    mode = "-" if entry.mode is None else f"{entry.mode & 0o7777:04o}"
    attributes = f"%attr({mode}, {entry.owner.replace(' ', ', ')})"
    return f'{attributes} {entry.kind} "{pattern}"'


def _scripts(package: Package, rules: Mapping[str, Any], tree: Path) -> str:
    """Return a package's scripts: the three things that EL's own packages do in theirs."""
    text = rules.get("scripts", "")
    if users := rules.get("sysusers"):
        # As EL's %sysusers_create_package: before the files, which may belong to these users.
        lines = "\n".join(users)
        text += (
            f"%pre -n {package.name}\n"
            f"systemd-sysusers --replace=/usr/lib/sysusers.d/{package.name}.conf - <<'EOF' || :\n{lines}\nEOF\n"
        )
    units = [path.removeprefix(UNITS) for path in package.files if path.startswith(UNITS) and _installable(tree, path)]
    if units:
        names = " ".join(sorted(units))
        for section, count, action in (("post", 1, "preset"), ("preun", 0, "disable --now")):
            text += (
                f"%{section} -n {package.name}\n"
                f'if [ "$1" -eq {count} ] && [ -x /usr/bin/systemctl ]; then\n'
                f"    systemctl --no-reload {action} {names} || :\n"
                "fi\n"
            )
    return text


def _installable(tree: Path, path: str) -> bool:
    """Tell whether a unit can be enabled."""
    file = tree / path[1:]
    if "@." in path or "/" in path.removeprefix(UNITS) or file.is_symlink() or not file.is_file():
        return False
    return "\n[Install]" in file.read_text(encoding="utf-8")

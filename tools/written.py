"""Write files that are made from others (`make docs`), or tell which are not current."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(about: str | None, files: Iterable[tuple[Path, str]]) -> int:
    """Write the files, or with ``--check`` change nothing; give the exit status.

    :param about: the program's docstring, whose first line is its help.
    :param files: paths below ROOT, each with the text that belongs there.
    """
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file is not current")
    check = parser.parse_args().check
    status = 0
    for path, text in files:
        if path.exists() and path.read_text() == text:
            continue
        print(f"{path.relative_to(ROOT)} {'is not current: run `make docs`' if check else 'is written'}")
        if check:
            status = 1
        else:
            path.write_text(text)
    return status

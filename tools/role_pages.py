#!/usr/bin/env python3
"""Write roles/*/README.md from the roles' argument specs (`make docs`), or tell which are not current.

No tool there is gives a page to read on GitHub: antsibull-docs writes HTML inside RST, which GitHub
leaves out, and aar-doc keeps choices apart from their variables and has no check.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import written
import yaml
from antsibull_docs_parser import dom
from antsibull_docs_parser.md import MDFormatter, to_md
from antsibull_docs_parser.parser import Context, parse

LONG = 28  # characters of a default; longer ones stand with the description, where there is room

Options = dict[str, dict[str, Any]]


class Formatter(MDFormatter):
    """Markdown as people write it: names and values in backticks, no HTML."""

    def format_text(self, part: dom.TextPart) -> str:
        return re.sub(r"([*<])", r"\\\1", part.text)

    def format_code(self, part: dom.CodePart) -> str:
        return f"`{part.text}`"

    def format_option_name(self, part: dom.OptionNamePart, url: str | None) -> str:
        return f"`{part.name}`" if part.value is None else f"`{part.name}={part.value}`"

    def format_option_value(self, part: dom.OptionValuePart) -> str:
        return f"`{part.value}`"

    def format_module(self, part: dom.ModulePart, url: str | None) -> str:
        return f"`{part.fqcn}`"


def markdown(text: str | list[str], separator: str = "\n\n") -> str:
    """Resolve Ansible's markup, such as V(none), in one paragraph or several."""
    paragraphs = parse(text if isinstance(text, list) else [text], Context())
    return to_md(paragraphs, formatter=Formatter(), par_sep=separator)


def tables(options: Options, title: str = "") -> Iterator[tuple[str, Options]]:
    """Give a table's title and options, and after it the tables of the options that have options themselves."""
    for name, option in options.items():
        if "options" in option:
            option["table"] = f"{title}.{name}".lstrip(".") + ("[]" if option["type"] == "list" else "")
    yield title, options
    for option in options.values():
        if "options" in option:
            yield from tables(option["options"], option["table"])


def row(name: str, option: dict[str, Any]) -> str:
    """Give a line of a table: name and type, default, description."""
    kind = f"list of {option['elements']}" if option["type"] == "list" else option["type"]
    about = [markdown(option["description"], "<br>")]
    if choices := option.get("choices"):
        about.append(f"One of {', '.join(f'`{choice}`' for choice in choices)}.")
    if inner := option.get("table"):
        about.append(f"Its keys: [`{inner}`](#{re.sub(r'[^a-z0-9_]', '', inner)})")
    default = "**required**" if option.get("required") else ""
    if "default" in option:
        # Strings as they are, all other values as JSON, which is YAML, too.
        value = option["default"]
        default = f"`{value if isinstance(value, str) and value else json.dumps(value)}`"
    if len(default) > LONG:
        about.append(f"Default: {default}")
        default = "→"
    cells = [f"`{name}`<br>*{kind}*", default, "<br>".join(about)]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def page(role: Path) -> str:
    """Give the text of a role's page."""
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    shared = specs["main"].get("options", {})
    for name, spec in specs.items():  # an entry point's own options: those that are not the role's
        options = spec.get("options", {})
        spec["own"] = {key: options[key] for key in options if name == "main" or options[key] != shared.get(key)}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["markdown"] = markdown
    template = environment.get_template("role_page.md.j2")
    return template.render(role=f"tenfold.stack.{role.name}", entry_points=specs, tables=tables, row=row)


if __name__ == "__main__":
    roles = [spec.parent.parent for spec in sorted(written.ROOT.glob("roles/*/meta/argument_specs.yml"))]
    sys.exit(written.main(__doc__, ((role / "README.md", page(role)) for role in roles)))

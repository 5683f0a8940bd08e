# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person typed, made into a question, and back into links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, available_timezones

from mailreport.lake import OUTCOMES
from mailreport.questions import Search

RANGES = {
    "15m": ("Last 15 minutes", timedelta(minutes=15)),
    "1h": ("Last hour", timedelta(hours=1)),
    "6h": ("Last 6 hours", timedelta(hours=6)),
    "24h": ("Last 24 hours", timedelta(hours=24)),
    "7d": ("Last 7 days", timedelta(days=7)),
    "30d": ("Last 30 days", timedelta(days=30)),
    "custom": ("From … to …", timedelta()),
}
DEFAULT_RANGE = "24h"
# What a search can ask for beside its time.
FIELDS = tuple(item.name for item in fields(Search) if item.name not in ("begin", "end"))
_ZONES = available_timezones() | {"UTC"}
ZONES = sorted(name for name in _ZONES if "/" in name or name == "UTC")  # of places, to choose from
_LONGEST = 1000  # characters of a field: a message id or a text is shorter
_LONGEST_RANGE = timedelta(days=366)
_OLDEST = datetime(1990, 1, 1)  # no log is so old


def zone(name: str) -> tzinfo | None:
    """Give a time zone by its name; None if there is no such zone."""
    if name == "UTC":  # also where the machine has no zones
        return UTC
    return ZoneInfo(name) if name in _ZONES else None


@dataclass(frozen=True)
class Form:
    """A form as it was sent: what was typed, what it means, and what is wrong with it."""

    begin: datetime  # naive UTC, as in the lake
    end: datetime
    range: str
    zone_name: str
    zone: tzinfo
    typed: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)  # a sentence for each field that is wrong

    @property
    def search(self) -> Search:
        """Give the search that was asked for."""
        return Search(self.begin, self.end, **{name: self.typed.get(name, "") for name in FIELDS})

    @property
    def narrow(self) -> dict[str, str]:
        """Give what was asked for beside the time."""
        return {name: self.typed[name] for name in FIELDS if self.typed.get(name)}

    def local(self, time: datetime) -> datetime:
        """Give a time of the lake in the zone of the form."""
        return time.replace(tzinfo=UTC).astimezone(self.zone)

    @property
    def zone_text(self) -> str:
        """Give the zone with its distance from UTC."""
        return "UTC" if self.zone_name == "UTC" else f"{self.zone_name}, UTC{self.local(self.end).isoformat()[-6:]}"

    def fixed(self, **changes: str) -> dict[str, str]:
        """Give the parameters that ask the same of the same time, whenever they are sent."""
        time = {"range": "custom", "from": f"{self.begin.isoformat()}Z", "to": f"{self.end.isoformat()}Z"}
        return self._parameters(time, changes)

    def relative(self, **changes: str) -> dict[str, str]:
        """Give the parameters that ask the same of the time as it was chosen."""
        return self.fixed(**changes) if self.range == "custom" else self._parameters({"range": self.range}, changes)

    def _parameters(self, time: dict[str, str], changes: dict[str, str]) -> dict[str, str]:
        extra = {name: self.typed[name] for name in ("by", "key", "top") if self.typed.get(name)}
        given = {**time, "tz": self.zone_name, **self.narrow, **extra, **changes}
        return {name: value for name, value in given.items() if value}


def read(args: Mapping[str, str], now: datetime, zone_name: str, default: str = DEFAULT_RANGE) -> Form:
    """Read a form's parameters; the zone given counts where they name none, and so does the range."""
    # A key is one of a chart's, to the letter.
    typed = {name: (value if name == "key" else value.strip())[:_LONGEST] for name, value in args.items()}
    errors = {}
    zone_name = typed.get("tz") or zone_name
    tz = zone(zone_name)
    if tz is None:
        errors["tz"] = f"There is no time zone {zone_name}. Write one such as Europe/Berlin or UTC."
        zone_name, tz = "UTC", UTC
    choice = typed.get("range") or ("custom" if typed.get("from") else default)
    if choice not in RANGES:
        errors["range"] = "Choose a time range from the list."
        choice = default
    # Whole seconds, so that a permanent link asks for the same.
    end = now.astimezone(UTC).replace(microsecond=0, tzinfo=None) + timedelta(seconds=1)
    begin = end - (RANGES[choice][1] or RANGES[default][1])
    if choice == "custom":
        times = {}
        for name in ("from", "to"):
            try:
                times[name] = _utc(typed.get(name, ""), tz)
            except (ValueError, OverflowError):
                typed[name] = ""  # browsers cannot show it
                errors[name] = f"Give the time '{name}' as a date and a time, such as 2026-11-21 14:30."
        if len(times) == 2 and times["from"] >= times["to"]:
            errors["to"] = "The time 'to' must be later than the time 'from'."
        elif len(times) == 2 and not _OLDEST < times["from"] < end:
            errors["from"] = "The time 'from' is too old, or in the future."
        elif len(times) == 2 and times["to"] - times["from"] > _LONGEST_RANGE:
            errors["to"] = f"Choose a range of {_LONGEST_RANGE.days} days at most."
        elif len(times) == 2:
            begin, end = times["from"], times["to"]
    if typed.get("outcome") and typed["outcome"] not in OUTCOMES:
        errors["outcome"] = "Choose an outcome from the list."
    return Form(begin, end, choice, zone_name, tz, typed, errors)


def _utc(text: str, tz: tzinfo) -> datetime:
    """Give a time, typed in a zone, as naive UTC.

    :raises ValueError: it is no time.
    """
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        time = time.replace(tzinfo=tz)
    return time.astimezone(UTC).replace(tzinfo=None)

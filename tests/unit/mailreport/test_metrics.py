# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what Prometheus is told of the lake."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mailreport import cli, ingest, metrics
from mailreport.lake import OUTCOMES, Lake
from mailreport.settings import Settings

LINES = """\
{time}+00:00 mx-01 postfix/qmgr[3]: {id}: from=<a@site.test>, size=700, nrcpt=1 (queue active)
{time}+00:00 mx-01 postfix/smtp[4]: {id}: to=<b@{domain}>, relay=mx.example.net[198.51.100.1]:25, delay=0.5, \
delays=0.1/0/0.2/0.2, dsn={dsn}, status={status} (said so)
"""


def now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A site with a lake, and no logs yet."""
    (tmp_path / "logs/mx-01").mkdir(parents=True)
    (tmp_path / "lake").mkdir()
    file = tmp_path / "mailreport.toml"
    file.write_text(f'logs = "{tmp_path}/logs"\nlake = "{tmp_path}/lake"\nworkers = 1\n')
    return Settings.read(file)


def log(settings: Settings, at: datetime, domain: str = "example.net", status: str = "sent", age: float = 0) -> None:
    """Write the lines of an attempt; the file is so many seconds old then."""
    path = settings.logs / "mx-01" / f"{at:%Y-%m-%dT%H}.log"
    with path.open("a") as file:
        dsn = {"sent": "2.0.0", "deferred": "4.7.1"}[status]
        number = f"4F{time.monotonic_ns():010X}"
        file.write(LINES.format(time=at.isoformat(), id=number, domain=domain, status=status, dsn=dsn))
    when = time.time() - age
    os.utime(path, (when, when))


def values(settings: Settings, at: datetime | None = None) -> dict[str, Any]:
    """Give what is told, by name: a number, or numbers by labels. Prometheus' own parser reads it, if it is there."""
    told, problems = metrics.tell(settings, at or now())
    assert not problems
    text = metrics.text(told)
    try:
        from prometheus_client.parser import text_string_to_metric_families as parsed
    except ImportError:
        pass
    else:
        families = {family.name: family for family in parsed(text)}
        assert list(families) == [metric.name for metric in told]
        for metric in told:
            family = families[metric.name]
            assert (family.type, family.documentation) == ("gauge", metric.what)
            samples = [(sample.labels, sample.value) for sample in family.samples]
            assert [value for _labels, value in samples] == [value for _labels, value in metric.values]
            assert [set(labels) for labels, _value in samples] == [set(labels) for labels, _value in metric.values]
    found = {metric.name.removeprefix("mailreport_"): metric.values for metric in told}
    return {
        name: {tuple(labels.values()): value for labels, value in its} if name == "attempts" else its[0][1]
        for name, its in found.items()
    }


def test_site_without_logs_is_not_behind(settings):
    told = values(settings)
    assert told["lag_seconds"] == 0
    assert told["attempts"] == {}
    assert (told["lines"], told["unparsed_lines"], told["lake_bytes"]) == (0, 0, 0)
    assert "ingest_timestamp_seconds" not in told, "it never ran"
    assert "newest_attempt_timestamp_seconds" not in told
    assert abs(told["metrics_timestamp_seconds"] - time.time()) < 60


def test_lag_is_of_the_follower_and_not_of_the_clock(settings):
    follower = ingest.Follower(ingest.Hours(settings))
    hour = now().replace(minute=0, second=0, microsecond=0)
    log(settings, hour, age=500)
    follower.look(hour)
    assert values(settings)["lag_seconds"] == 0
    # Nothing comes any more, and nobody follows: a quiet site.
    settings_lake = Lake(settings.lake)
    settings_lake.mark("followed", time.time() - 400)
    assert values(settings)["lag_seconds"] == 0
    log(settings, hour, age=100)
    assert values(settings)["lag_seconds"] == pytest.approx(300, abs=5), "the follower is dead, and a line came"
    follower.look(hour)
    assert values(settings)["lag_seconds"] == 0


def test_lag_without_a_follower_is_of_the_hours_that_are_not_made(settings):
    hour = now().replace(minute=0, second=0, microsecond=0)
    before = hour - timedelta(hours=3)
    log(settings, before)
    age = (now() - before).total_seconds()
    assert values(settings)["lag_seconds"] == pytest.approx(age, abs=5)
    ingest.Hours(settings).run()
    assert values(settings)["lag_seconds"] == 0
    # A late line is brought in with the next hour.
    log(settings, before)
    assert values(settings)["lag_seconds"] == 0
    log(settings, hour)
    assert values(settings)["lag_seconds"] == pytest.approx((now() - hour).total_seconds(), abs=5)


def test_attempts_are_of_the_last_hour_and_the_largest_domains(settings, monkeypatch):
    monkeypatch.setattr(metrics, "DOMAINS", 2)
    hours = ingest.Hours(settings)
    follower = ingest.Follower(hours)
    recent = now() - timedelta(seconds=1)
    for domain, sent, deferred in (("a.test", 3, 1), ("b.test", 0, 2), ("c.test", 1, 0)):
        for status, count in (("sent", sent), ("deferred", deferred)):
            for _turn in range(count):
                log(settings, recent, domain, status)
    log(settings, recent - timedelta(hours=2), "old.test")
    follower.look()
    told = values(settings)
    assert set(told["attempts"]) == {(domain, outcome) for domain in ("a.test", "b.test") for outcome in OUTCOMES}
    assert {key: count for key, count in told["attempts"].items() if count} == {
        ("a.test", "delivered"): 3, ("a.test", "deferred"): 1, ("b.test", "deferred"): 2,
    }  # fmt: skip
    assert told["newest_attempt_timestamp_seconds"] == pytest.approx(recent.replace(tzinfo=UTC).timestamp(), abs=0.001)
    assert told["lake_bytes"] == sum(path.stat().st_size for path in settings.lake.rglob("*.parquet"))


def test_ingest_is_told_when_it_ended(settings, capsys):
    log(settings, now() - timedelta(hours=2))
    config = str(settings.lake.parent / "mailreport.toml")
    assert cli.main(["--config", config, "ingest"]) == 0
    assert values(settings)["ingest_timestamp_seconds"] == pytest.approx(time.time(), abs=30)
    assert values(settings)["lines"] == 2
    # Also when there was nothing to do.
    Lake(settings.lake).mark("ingested", 1)
    for path in settings.lake.glob("manifests/*/*"):
        os.utime(path, (2, 2))
    assert values(settings)["ingest_timestamp_seconds"] == 2
    assert cli.main(["--config", config, "ingest"]) == 0
    assert values(settings)["ingest_timestamp_seconds"] == pytest.approx(time.time(), abs=30)


def test_file_is_replaced_and_all_may_read_it(settings, tmp_path, capsys):
    config, file = str(settings.lake.parent / "mailreport.toml"), tmp_path / "metrics.prom"
    before = os.umask(0o027)
    try:
        for _turn in range(2):
            assert cli.main(["--config", config, "metrics", "--output", str(file)]) == 0
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.glob("*.prom*")] == ["metrics.prom"]
    assert capsys.readouterr().out == ""
    assert cli.main(["--config", config, "metrics"]) == 0
    assert "\nmailreport_lag_seconds 0.0\n" in capsys.readouterr().out


def test_a_part_that_fails_does_not_harm_the_others(settings, capsys):
    log(settings, now() - timedelta(hours=2))
    config = str(settings.lake.parent / "mailreport.toml")
    assert cli.main(["--config", config, "ingest"]) == 0
    settings.logs.rename(settings.logs.with_name("gone"))
    capsys.readouterr()
    assert cli.main(["--config", config, "metrics"]) == 1
    said = capsys.readouterr()
    assert "mailreport: lag cannot be told: FileNotFoundError" in said.err
    assert "mailreport_lag_seconds" not in said.out, "no number is better than an old one"
    assert "mailreport_lines 2\n" in said.out


def test_names_of_domains_do_not_break_the_lines():
    hostile = 'a"b\\c\nd\u2028{e="f"} 7'
    text = metrics.text([metrics.Metric("mailreport_attempts", "What.", [({"domain": hostile}, 1)])])
    assert text.splitlines()[2:] == ['mailreport_attempts{domain="a\\"b\\\\c\\\\nd\\\\u2028{e=\\"f\\"} 7"} 1']

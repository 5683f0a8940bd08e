# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the client of Prometheus: what it understands, and the sentence for each way to fail."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from datetime import datetime, timedelta
from functools import partial

import pytest
from mailreport import prometheus
from mailreport.prometheus import Prometheus, PrometheusError, side_by_side
from mailreport.settings import PrometheusSettings

NOW = datetime(2026, 11, 21, 12)
UP = 'up{job="node"}'


def test_numbers_have_labels_and_times(fake):
    client = Prometheus(PrometheusSettings(url=f"{fake.address}/"))
    up = {one.labels["instance"]: one.values for one in client.at(UP, NOW)}
    assert up["mx-01"] == {NOW: 1}
    assert up["mx-03"] == {NOW: 0}
    (one,) = client.over("pool:memcached_hits:ratio5m", NOW, NOW + timedelta(minutes=2), timedelta(minutes=1))
    assert one.labels == {"pool": "cache.site.test"}
    assert [*one.values] == [NOW + timedelta(minutes=number) for number in range(3)]
    path, asked, authorization = fake.asked[-1]
    assert path == "/api/v1/query_range"
    assert asked["timeout"] == "5s"
    assert authorization == ""


def test_what_is_no_number_is_left_out(fake):
    values = [[NOW.timestamp(), "NaN"], [NOW.timestamp() + 60, "+Inf"], [NOW.timestamp() + 120, "1.5"]]
    result = [{"metric": {"__name__": "x", "pool": "p"}, "values": values}]
    fake.answer = lambda path, asked: (200, {"status": "success", "data": {"result": result}})
    (one,) = Prometheus(PrometheusSettings(url=fake.address)).over("x", NOW, NOW, timedelta(minutes=1))
    assert one.labels == {"pool": "p"}
    assert [*one.values.values()] == [1.5]


def test_alerts_that_fire(fake):
    alerts = Prometheus(PrometheusSettings(url=fake.address)).firing()
    assert [alert.labels["alertname"] for alert in alerts] == ["HostDown", "QueueOld"]
    assert alerts[0].since == datetime(2026, 11, 21, 10, 0, 0, 123456)


def test_password_is_read_at_each_question_and_goes_nowhere_else(fake, tmp_path):
    file = tmp_path / "password"
    client = Prometheus(PrometheusSettings(url=fake.address, user="report", password_file=file))
    with pytest.raises(PrometheusError, match=r"The password of Prometheus cannot be read: .*No such file"):
        client.at(UP, NOW)
    for password in ("first", "größer:2"):
        file.write_text(f"{password}\n")
        client.at(UP, NOW)
        assert base64.b64decode(fake.asked[-1][2].removeprefix("Basic ")).decode() == f"report:{password}"
    fake.answer = lambda path, asked: (302, b"")
    count = len(fake.asked)
    with pytest.raises(PrometheusError, match="its address leads elsewhere"):
        client.at(UP, NOW)
    assert len(fake.asked) == count + 1


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (401, b"Unauthorized", "Prometheus refuses the user or the password."),
        (400, {"status": "error", "error": "parse error"}, "Prometheus cannot answer: parse error."),
        (503, b"<html>", "Prometheus cannot answer: 503 Service Unavailable."),
        (200, b"<html>hello</html>", "What answers is no Prometheus: nobody understands what it says."),
        (200, [], "What answers is no Prometheus: nobody understands what it says."),
        (200, {"status": "success", "data": {"result": [1]}}, "What answers is no Prometheus"),
        (200, {"status": "success", "data": None}, "What answers is no Prometheus"),
    ],
)
def test_answers_that_are_none(fake, status, content, said):
    fake.answer = lambda path, asked: (status, content)
    client = Prometheus(PrometheusSettings(url=fake.address))
    for ask in (client.firing, partial(client.at, UP, NOW)):
        with pytest.raises(PrometheusError) as error:
            ask()
        assert str(error.value).startswith(said)


def test_answer_that_is_too_large(fake, monkeypatch):
    monkeypatch.setattr(prometheus, "LARGEST", 1 << 20)
    fake.answer = lambda path, asked: (200, json.dumps({"a": "b" * (1 << 21)}).encode())
    with pytest.raises(PrometheusError, match="its answer is larger than 1 MiB"):
        Prometheus(PrometheusSettings(url=fake.address)).firing()


def test_nobody_answers():
    with pytest.raises(PrometheusError, match=r"Prometheus does not answer: Connection refused\."):
        Prometheus(PrometheusSettings(url="http://127.0.0.1:9")).firing()


def test_all_is_asked_side_by_side_and_nobody_waits_longer(fake):
    def slow(path, asked):
        time.sleep(3 if asked["query"] == "never" else 0.3)
        return 200, {"status": "success", "data": {"result": []}}

    fake.answer = slow
    client = Prometheus(PrometheusSettings(url=fake.address), 1)
    start = time.monotonic()
    asked = {name: partial(client.at, name, NOW) for name in ("a", "b", "c", "d", "never")}
    answers, problems = side_by_side(asked, 1)
    assert time.monotonic() - start < 2
    assert [*answers] == ["a", "b", "c", "d"]
    assert problems == {"never": "Prometheus gave no answer in 1 s."}


def test_certificates_are_checked(fake, tmp_path):
    other = tmp_path / "other.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=other", "-keyout", tmp_path / "key", "-out", other], check=True, capture_output=True,
    )  # fmt: skip
    client = Prometheus(PrometheusSettings(url=fake.address.replace("http:", "https:"), ca=other), 2)
    with pytest.raises(PrometheusError, match="Prometheus does not answer: "):  # it speaks no TLS
        client.firing()
    for ca in (tmp_path / "none", tmp_path / "key"):
        with pytest.raises(PrometheusError, match=f"The certificates in {ca} cannot be read: "):
            Prometheus(PrometheusSettings(url="https://127.0.0.1:9", ca=ca)).firing()

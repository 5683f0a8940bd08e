# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the settings' file."""

from __future__ import annotations

from pathlib import Path

import pytest
from mailreport import settings as program
from mailreport.settings import Settings, SettingsError

NEEDED = 'logs = "/l"\nlake = "/p"\n'


def read(tmp_path: Path, text: str) -> Settings:
    """Read a file with a text."""
    path = tmp_path / "mailreport.toml"
    path.write_text(text)
    return Settings.read(path)


def test_values_have_their_types(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        f'{NEEDED}handover = ["fallback.vip.site.test", "192.0.2.4"]\nkeep_days = 7\nengine = "spark"\n'
        'engine_url = "sc://spark:15002"\n[web]\ntitle = "T"\ncertificate = "/c"\nkey = "/k"\nrows = 5\n',
    )
    assert settings.logs == Path("/l")
    assert settings.handover == ("fallback.vip.site.test", "192.0.2.4")
    assert (settings.keep_days, settings.engine, settings.engine_url) == (7, "spark", "sc://spark:15002")
    assert (settings.web.title, settings.web.certificate, settings.web.rows) == ("T", Path("/c"), 5)
    assert settings.web.timeout_s == Settings(Path("/l"), Path("/p")).web.timeout_s


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('lake = "/p"', "logs: is needed."),
        (f"{NEEDED}lak = 1", "lak: there is no such setting. There are logs, lake, "),
        (f'{NEEDED}keep_days = "7"', "keep_days: '7' is not a number from 0."),
        (f"{NEEDED}keep_days = -1", "keep_days: -1 is not a number from 0."),
        (f"{NEEDED}workers = true", "workers: True is not a number from 0."),
        (f"{NEEDED}memory = 2", "memory: 2 is not a text."),
        (f'{NEEDED}handover = "a"', "handover: 'a' is not a list of texts."),
        (f'{NEEDED}engine = "oracle"', "engine: 'oracle' is none of duckdb, clickhouse, spark."),
        (f'{NEEDED}engine = "spark"', "engine_url: say where spark is."),
        ('logs = "l"\nlake = "/p"', "logs: 'l' is not the whole path of a file."),
        (f"{NEEDED}web = 1", "web: 1 is not a table."),
        (f"{NEEDED}[web]\nrows = 1.5", "web.rows: 1.5 is not a number from 0."),
        (f'{NEEDED}[web]\nkey = "k"', "web.key: 'k' is not the whole path of a file."),
        (f'{NEEDED}[web]\nkey = "/k"', "web.certificate and web.key: give both or none."),
        (f"{NEEDED}[web]\nrow = 1", "web.row: there is no such setting."),
        (f'{NEEDED}engine_url_file = "/nowhere"', "engine_url_file: /nowhere: No such file or directory."),
        ("logs =", "not TOML: "),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'mailreport.toml'}: {said}")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: No such file or directory\."):
        Settings.read(tmp_path / "none.toml")


def test_an_address_with_a_password_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("https://u:p@clickhouse:8443\n")
    settings = read(tmp_path, f'{NEEDED}engine = "clickhouse"\nengine_url_file = "{tmp_path}/url"\n')
    assert settings.engine_url == "https://u:p@clickhouse:8443"


def test_a_file_is_checked_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.toml"
    monkeypatch.setattr("sys.argv", ["settings", str(path)])
    path.write_text(NEEDED)
    assert program.main() == 0
    path.write_text("logs = 1")
    assert program.main() == 1
    assert f"{path}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        'url = "https://mon-01:9090"',
        'url = "http://mon-01:9090/prometheus/"',
        'url = "https://mon-01"\nca = "/ca.pem"\nuser = "report"\npassword_file = "/secret"',
        'url = "http://127.0.0.1:9090"\nuser = "report"\npassword_file = "/secret"',
        'url = "http://[::1]:9090"\nuser = "report"\npassword_file = "/secret"',
        "",
    ],
)
def test_prometheus_may_be_so(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"{NEEDED}[prometheus]\n{text}").prometheus.url.startswith("http" if text else "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('user = "report"\npassword_file = "/secret"', "url: say where Prometheus is."),
        ('url = "mon-01:9090"', "url: 'mon-01:9090' is not the address of a Prometheus, such as https://"),
        ('url = "file:///etc/passwd"', "url: 'file:///etc/passwd' is not the address"),
        ('url = "http://mon-01:x"', "url: 'http://mon-01:x' is not the address"),
        ('url = "http://mon-01/?a=b"', "url: 'http://mon-01/?a=b' is not the address"),
        ('url = "https://u:p@mon-01"', "url: user and password have settings of their own: "),
        ('url = "https://mon-01"\nuser = "report"', "user and prometheus.password_file: give both or none."),
        ('url = "https://mon-01"\npassword_file = "/secret"', "user and prometheus.password_file: give both or none."),
        (
            'url = "https://mon-01"\nuser = "a:b"\npassword_file = "/secret"',
            "user: a name with a : in it cannot be sent.",
        ),
        (
            'url = "http://mon-01"\nuser = "a"\npassword_file = "/s"',
            "url: the password would be sent in the clear to mon-",
        ),
        (
            'url = "http://127.0.0.1.a.test"\nuser = "a"\npassword_file = "/s"',
            "url: the password would be sent in the c",
        ),
        ('password = "p"', "password: there is no such setting. There are url, ca, user, password_file."),
    ],
)
def test_prometheus_may_not_be_so(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(tmp_path, f"{NEEDED}[prometheus]\n{text}")
    assert str(error.value).startswith(f"{tmp_path / 'mailreport.toml'}: prometheus.{said}")

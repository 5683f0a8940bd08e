# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the site's Prometheus knows, by its HTTP API."""

from __future__ import annotations

import base64
import http.client
import json
import math
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

from mailreport.settings import PrometheusSettings

LIMIT_S = 5.0  # of an answer, and of all that are asked for side by side
LARGEST = 1 << 25  # bytes of an answer
_AT_ONCE = 8
_PART = 1 << 16
_Answer = TypeVar("_Answer")


class PrometheusError(Exception):
    """Why there is no answer, as a sentence."""


class Alert(NamedTuple):
    """An alert that fires."""

    labels: dict[str, str]
    annotations: dict[str, str]
    since: datetime  # naive UTC


class Series(NamedTuple):
    """Labels, and values by time (naive UTC). What is no number is left out."""

    labels: dict[str, str]
    values: dict[datetime, float]


class Prometheus:
    """Answers questions in PromQL."""

    def __init__(self, settings: PrometheusSettings, seconds: float = LIMIT_S) -> None:
        self._settings, self._seconds = settings, seconds
        self._address = settings.url.rstrip("/")

    def firing(self) -> list[Alert]:
        """Give the alerts that fire.

        :raises PrometheusError: there is no answer.
        """
        try:
            return [
                Alert(dict(one["labels"]), dict(one["annotations"]), _moment(one["activeAt"]))
                for one in self._get("alerts", {})["alerts"]
                if one["state"] == "firing"
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise _strange() from error

    def at(self, query: str, now: datetime) -> list[Series]:
        """Give the values of a query at a time.

        :raises PrometheusError: there is no answer.
        """
        return self._series("query", {"query": query, "time": _epoch(now)}, "value")

    def over(self, query: str, begin: datetime, end: datetime, step: timedelta) -> list[Series]:
        """Give the values of a query from begin to end (included), a step apart.

        :raises PrometheusError: there is no answer.
        """
        times = {"start": _epoch(begin), "end": _epoch(end), "step": step.total_seconds()}
        return self._series("query_range", {"query": query, **times}, "values")

    def _series(self, path: str, asked: Mapping[str, Any], name: str) -> list[Series]:
        try:
            return [
                Series(
                    {label: value for label, value in one["metric"].items() if label != "__name__"},
                    {
                        _from_epoch(at): number
                        for at, text in (one[name] if name == "values" else [one[name]])
                        if math.isfinite(number := float(text))
                    },
                )
                for one in self._get(path, asked)["result"]
            ]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise _strange() from error

    def _get(self, path: str, asked: Mapping[str, Any]) -> Any:
        """Give the data of an answer."""
        limits = {"timeout": f"{self._seconds:g}s"} if asked else {}  # it need not go on when nobody waits
        request = urllib.request.Request(f"{self._address}/api/v1/{path}?{urlencode({**asked, **limits})}")
        if self._settings.user:
            secret = f"{self._settings.user}:{self._password()}".encode()
            request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(secret).decode()}")
        try:
            with self._opener.open(request, timeout=self._seconds) as answer:
                data = json.loads(_read(answer, time.monotonic() + self._seconds))
        except urllib.error.HTTPError as error:
            with error:
                raise PrometheusError(_refused(error)) from error
        except (OSError, http.client.HTTPException) as error:
            raise PrometheusError(self._why(error)) from error
        except ValueError as error:
            raise _strange() from error
        if not isinstance(data, dict) or data.get("status") != "success":
            raise _strange()
        return data.get("data")

    def _password(self) -> str:
        if self._settings.password_file is None:
            return ""
        try:
            return self._settings.password_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise PrometheusError(f"The password of Prometheus cannot be read: {self._why(error)}") from error

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        """Give who asks: no proxy, and nobody that it is sent on to, gets to know the password."""
        ca = self._settings.ca
        try:
            context = ssl.create_default_context(cafile=str(ca) if ca else None)
        except OSError as error:  # also if it holds no certificate
            raise PrometheusError(f"The certificates in {ca} cannot be read: {error.strerror or error}.") from error
        return urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _Here()
        )

    def _why(self, error: Exception) -> str:
        """Tell what went wrong below HTTP."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            return f"Prometheus has a certificate that is not trusted: {reason.verify_message}."
        if isinstance(reason, TimeoutError):
            return _late(self._seconds)
        what = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        return f"Prometheus does not answer: {what or type(reason).__name__}."


class _Here(urllib.request.HTTPRedirectHandler):
    """Follows nobody: an API does not move."""

    def redirect_request(self, *_given: Any) -> None:
        """Give no other request, so that this one fails."""


def side_by_side(
    asked: Mapping[str, Callable[[], _Answer]], seconds: float = LIMIT_S
) -> tuple[dict[str, _Answer], dict[str, str]]:
    """Ask all at once; give the answers and, of the others, why there is none."""
    pool = ThreadPoolExecutor(_AT_ONCE)
    futures: dict[str, Future[_Answer]] = {name: pool.submit(ask) for name, ask in asked.items()}
    wait(futures.values(), timeout=seconds)
    pool.shutdown(wait=False, cancel_futures=True)
    answers, problems = {}, {}
    for name, future in futures.items():
        if not future.done() or future.cancelled():
            problems[name] = _late(seconds)
            continue
        try:
            answers[name] = future.result()
        except PrometheusError as error:
            problems[name] = str(error)
    return answers, problems


def _read(answer: Any, until: float) -> bytes:
    """Read an answer, unless it is too long or takes too long."""
    content = bytearray()
    while part := answer.read1(_PART):
        content += part
        if len(content) > LARGEST:
            raise OSError(f"its answer is larger than {LARGEST >> 20} MiB")
        if time.monotonic() > until:
            raise TimeoutError
    return bytes(content)


def _refused(error: urllib.error.HTTPError) -> str:
    """Tell what an answer that is none says."""
    if error.code in (401, 403):
        return "Prometheus refuses the user or the password."
    if error.code in (301, 302, 303, 307, 308):
        return "There is no Prometheus: its address leads elsewhere. Name the one that it leads to."
    try:
        said = json.loads(error.read(_PART))["error"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        said = f"{error.code} {error.reason}"
    return f"Prometheus cannot answer: {said}."


def _late(seconds: float) -> str:
    return f"Prometheus gave no answer in {seconds:g} s."


def _strange() -> PrometheusError:
    return PrometheusError("What answers is no Prometheus: nobody understands what it says.")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)


def _epoch(moment: datetime) -> float:
    return moment.replace(tzinfo=UTC).timestamp()


def _from_epoch(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)

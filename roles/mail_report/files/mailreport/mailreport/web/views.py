# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the page shows at each address."""

from __future__ import annotations

import io
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Blueprint, Response, abort, current_app, g, redirect, render_template, request, session, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from mailreport import output, raw
from mailreport.engines import EngineError
from mailreport.lake import ATTEMPTS, DIMENSIONS, OUTCOMES, REJECTS
from mailreport.prometheus import Prometheus
from mailreport.questions import Freshness, Journey, Message, Questions, Row
from mailreport.settings import Settings
from mailreport.web import auth, charts, forms
from mailreport.web import hosts as host_charts
from mailreport.web.audit import Audit, Entry
from mailreport.web.forms import Form

page = Blueprint("page", __name__)
page.add_app_template_filter(output.visible)

OUTCOME_NAMES = {
    "delivered": "Delivered",
    "handed_over": "Handed over",
    "deferred": "Deferred",
    "bounced": "Bounced",
    "expired": "Expired",
    "probe": "Probe",
}
OPEN = ("page.login", "static")  # without a login
_PART = 10_000  # rows of a download that are asked for at once


@dataclass
class State:
    """What the requests of one process share."""

    settings: Settings
    ask: Callable[[], Questions]  # made at the first question: a page without its engine tells so
    users: auth.Users
    lockout: auth.Lockout
    audit: Audit
    freshness: Freshness | None = None
    freshness_until: float = field(default=0)


@dataclass(frozen=True)
class Stop:
    """A mail on one host of its journey."""

    message: Message
    attempts: list[Row]
    lines: list[str] | None  # of the log; None if they were not asked for


@dataclass(frozen=True)
class Fate:
    """What became of a mail for one recipient."""

    last: Row
    after_ms: int  # since the mail came to the first host


def state() -> State:
    """Give what the requests share."""
    found: State = current_app.extensions["mailreport"]
    return found


def questions() -> Questions:
    """Give who answers."""
    return state().ask()


def now() -> datetime:
    """Give the time."""
    return datetime.now(UTC)


# ---- Who asks


@page.before_app_request
def let_in() -> AnyResponse | None:
    """Let nobody in without a login, and no form that another site made."""
    g.start = time.monotonic()
    web = state().settings.web
    users = state().users
    g.user = None if request.endpoint == "static" else auth.named_by_proxy(users, web.proxy_header)
    g.by_proxy = g.user is not None
    if g.user is None and request.endpoint != "static":
        g.user = auth.logged_in(users)
    if request.method == "POST" and not auth.has_token(request):
        abort(400, "This form is too old, or cookies are off. Go back, load the page again, and send it once more.")
    if g.user is None and request.endpoint not in OPEN:
        here = f"{request.script_root}{request.full_path}".removesuffix("?")
        return redirect(url_for("page.login", next=here if request.method != "POST" else None))
    return None


@page.route("/login", methods=["GET", "POST"])
def login() -> AnyResponse | tuple[str, int] | str:
    """Ask for name and password."""
    target = auth.own_path(request.values.get("next", ""))
    if request.method != "POST":
        return render_template("login.html", target=target, name="", error="")
    name, address = request.form.get("name", "").strip()[:200], request.remote_addr or ""
    known = name if state().users.get(name) else "?"  # it may be a password, typed in the wrong field
    if not state().lockout.count(name, address):
        state().audit.write(known, address, "locked out", {}, None)
        error = f"Too many tries. Wait {state().settings.web.lockout_minutes} minutes, or ask your administrator."
        return render_template("login.html", target=target, name=name, error=error), 429
    user = state().users.check(name, request.form.get("password", ""))
    state().audit.write(known, address, "login" if user else "login failed", {}, None)
    if user is None:
        error = "Name or password is wrong."
        return render_template("login.html", target=target, name=name, error=error), 401
    state().lockout.forget(name, address)
    auth.log_in(user)
    if forms.zone(request.form.get("zone", "")):  # of the browser, where it runs scripts
        session["zone"] = request.form["zone"]
    return redirect(target or url_for("page.search"))


@page.post("/logout")
def logout() -> AnyResponse:
    """End the session."""
    session.clear()
    return redirect(url_for("page.login"))


@page.get("/audit")
def audit() -> str:
    """Show who asked what."""
    if not g.user.is_admin:
        abort(403)
    form = read_form()
    return render_template("audit.html", form=form, entries=state().audit.newest(state().settings.web.rows))


# ---- Searches


@page.get("/")
def search() -> tuple[str, int] | str:
    """Show the form, and attempts."""
    return results("search")


@page.get("/rejects")
def rejects() -> tuple[str, int] | str:
    """Show mails that were not taken."""
    return results("rejects")


def results(action: str) -> tuple[str, int] | str:
    """Show the form, and what it finds."""
    form = read_form()
    template = f"{action}.html"
    if form.errors or not request.args:
        return render_template(template, form=form, found=None), 400 if form.errors else 200
    ask = questions().search if action == "search" else questions().rejects
    after = request.args.get("after", "")
    with audited(action, form.fixed(after=after)) as entry:
        try:
            found = ask(form.search, state().settings.web.rows, after)
        except (ValueError, OverflowError):
            abort(400, "This link to further rows is damaged. Search again.")
        entry.rows = len(found.rows)
    counts = None
    other = False
    if action == "search" and not after:
        counts = count_all(form) if found.after else count(found.rows)
        other = not found.rows and bool(questions().rejects(form.search, 1).rows)
    return render_template(template, form=form, found=found, after=after, counts=counts, has_rejects=other)


@page.get("/<any(attempts, rejects):table>.<any(csv, json):kind>")
def download(table: str, kind: str) -> Response:
    """Give the rows of a search as a file."""
    form = read_form()
    if form.errors:
        abort(400, " ".join(form.errors.values()))
    ask = questions().search if table == "attempts" else questions().rejects
    limit = state().settings.web.download_rows
    given, after = 0, ""

    def rows() -> Iterator[Row]:
        """Give the rows in parts, as they take much more memory than their text."""
        nonlocal given, after
        while not given or (after and given < limit):
            found = ask(form.search, min(limit - given, _PART), after)
            given, after = given + len(found.rows), found.after
            yield from found.rows
            if not after:
                return

    file = io.StringIO()
    with audited(f"download {table} {kind}", form.fixed()) as entry:
        if kind == "csv":
            output.write_csv(file, (ATTEMPTS if table == "attempts" else REJECTS).names, rows())
        else:
            file.write("[" + ",\n".join(map(output.as_json, rows())) + "]\n")
        entry.rows = given
    cut = f"-newest-{given}" if after else ""  # who opens the file later must know
    name = f"{table}-{form.begin:%Y%m%dT%H%M%SZ}-{form.end:%Y%m%dT%H%M%SZ}{cut}.{kind}"
    response = Response(file.getvalue(), mimetype="text/csv" if kind == "csv" else "application/json")
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


@page.get("/mail")
def mail() -> str:
    """Show the journey of a mail."""
    form = read_form()
    asked = {name: request.args.get(name, "") for name in ("host", "instance", "queue_id", "arrived", "recipient")}
    try:
        arrived = datetime.fromisoformat(asked["arrived"])
        if arrived.tzinfo:
            arrived = arrived.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        abort(404)
    if not 1990 < arrived.year < 9000:  # so that days before and after it can be reckoned
        abort(404)
    with_lines = "lines" in request.args
    with audited("mail with lines" if with_lines else "mail", asked) as entry:
        journey = questions().journey(asked["host"], asked["instance"], asked["queue_id"], arrived, asked["recipient"])
        entry.rows = len(journey.attempts)
        stops = stops_of(journey, with_lines)
    if not stops:
        abort(404, "No such mail is in the lake. It may be too old, or its logs have not been read yet.")
    fates = fates_of(journey)
    day = timedelta(days=1)
    return render_template(
        "mail.html",
        form=form,
        asked=asked,
        journey=journey,
        stops=stops,
        fates=fates,
        ends={fate.last["relay"]: fate.last["time"] for fate in fates.values() if fate.last["outcome"] == "delivered"},
        around={"range": "custom", "from": output.plain(arrived - day), "to": output.plain(arrived + day)},
        with_lines=with_lines,
    )


def stops_of(journey: Journey, with_lines: bool) -> list[Stop]:
    """Give the hosts of a journey, each with its attempts."""
    return [
        Stop(
            message,
            journey.attempts_of(message),
            list(raw.lines(state().settings.logs, message)) if with_lines else None,
        )
        for message in journey.messages
    ]


def fates_of(journey: Journey) -> dict[str, Fate]:
    """Give what became of a mail, by recipient."""
    seen = {message.queue_id for message in journey.messages}
    # The oldest come first. What the next host wrote counts, even if its clock is behind.
    last = {row["recipient"]: row for row in journey.attempts if row["next_queue_id"] not in seen}
    came = min((message.arrived for message in journey.messages), default=datetime.min)
    return {name: Fate(row, max(0, (row["time"] - came) // timedelta(milliseconds=1))) for name, row in last.items()}


@page.get("/unparsed")
def unparsed() -> tuple[str, int] | str:
    """Show lines that no rule knows."""
    form = read_form()
    if form.errors:
        return render_template("unparsed.html", form=form, found=None), 400
    with audited("unparsed", form.fixed()) as entry:
        found = questions().unparsed(form.begin, form.end)
        entry.rows = len(found.samples)
    return render_template("unparsed.html", form=form, found=found)


@page.get("/charts")
def chart() -> tuple[str, int] | str:
    """Show how it went over time, and where it fails most."""
    form = read_form()
    by = form.typed.get("by") or "all"
    key = form.typed.get("key", "") if by != "all" else ""
    if by == "domain":
        key = key.strip().removeprefix("@").lower()
    top = form.typed.get("top", "deferred")
    if by not in DIMENSIONS:
        form.errors["by"] = "Choose from the list."
    elif by != "all" and not key:
        form.errors["key"] = f"Write which {by} the charts are about, or choose 'all mail'."
    if top not in OUTCOMES:
        form.errors["top"] = "Choose an outcome from the list."
    if form.errors:
        return render_template("charts.html", form=form, by=by, key=key, top=top, points=None), 400
    step = charts.step_of(form)
    points = questions().series(form.begin, form.end, by, key, step)
    total = questions().total(points[0].begin if points else form.begin, form.end, by, key)
    tops = {}
    if by == "all":
        tops = {name: questions().top(form.begin, form.end, name, top, 10) for name in DIMENSIONS if name != "all"}
    return render_template(
        "charts.html",
        form=form,
        by=by,
        key=key,
        top=top,
        points=points,
        total=total,
        charts=charts.charts(form, points, step),
        tops=tops,
    )


@page.get("/hosts")
def hosts() -> tuple[str, int] | str:
    """Show what Prometheus says of the hosts."""
    if not state().settings.prometheus.url:
        abort(404, "No Prometheus is named to this page, so it knows nothing of hosts: see the settings' [prometheus].")
    form = read_form(host_charts.DEFAULT)
    if form.range not in host_charts.CHOICES:
        form.errors["range"] = "Choose a time range from the list."
    found = None if form.errors else host_charts.report(Prometheus(state().settings.prometheus), form)
    status = 400 if found is None else 503 if found.is_empty else 200
    columns = [title for title, _query, _unit in host_charts.COLUMNS.values()]
    shown = {"report": found, "choices": host_charts.CHOICES, "columns": columns, "most": host_charts.LINES}
    return render_template("hosts.html", form=form, span=charts.span, **shown), status


# ---- What pages are made of


def read_form(default: str = forms.DEFAULT_RANGE) -> Form:
    """Read the parameters; a zone that was chosen is kept for the session."""
    form = forms.read(request.args, now(), session.get("zone", state().settings.web.zone), default)
    if "tz" in request.args and "tz" not in form.errors:
        session["zone"] = form.zone_name
    return form


def audited(action: str, asked: dict[str, str]) -> AbstractContextManager[Entry]:
    """Log what the user does within."""
    told = {name: value for name, value in asked.items() if value and name != "after"}
    return state().audit.of(g.user.name, request.remote_addr or "", action, told)


def count_all(form: Form) -> dict[str, int] | None:
    """Count all that a search finds, by outcome; None if that takes too long, as the rows are there already."""
    try:
        return questions().count(form.search)
    except EngineError as error:
        current_app.logger.error("%s", error)
        return None


def count(rows: Iterable[Row]) -> dict[str, int]:
    """Count rows by outcome."""
    counts = dict.fromkeys(OUTCOMES, 0)
    for row in rows:
        counts[row["outcome"]] += 1
    return counts


@page.app_template_filter()
def moment(text: str) -> datetime:
    """Give a time of the audit log as one of the lake."""
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)


@page.app_context_processor
def shared() -> dict[str, Any]:
    """Give what all templates may use."""
    return {
        "site": state().settings.web.title,
        "outcomes": OUTCOME_NAMES,
        "ranges": {name: text for name, (text, _time) in forms.RANGES.items()},
        "zones": forms.ZONES,
        "token": auth.token,
        "freshness": freshness,
        "has_hosts": bool(state().settings.prometheus.url),
        "duration": charts.duration,
        "share": charts.share,
        "now": now().replace(tzinfo=None),
        "limit": state().settings.web.download_rows,
        "stale": timedelta(minutes=state().settings.web.stale_minutes),
    }


def freshness() -> Freshness | None:
    """Give how new the lake is, asked at most four times a minute; None if nobody knows."""
    shared = state()
    if time.monotonic() >= shared.freshness_until:
        try:
            shared.freshness = questions().freshness(now().replace(tzinfo=None))
        except EngineError as error:  # the page below the banner tells what to do
            current_app.logger.error("%s", error)
            shared.freshness = None
        shared.freshness_until = time.monotonic() + 15
    return shared.freshness


# ---- When it goes wrong

EXPLAINED = {
    400: ("That cannot be asked", "Something in the address or the form is wrong. Go back and try again."),
    403: ("Not for you", "Only administrators see this page. Ask one of them to give you the role 'admin'."),
    500: ("Something is broken", "The page has a fault. Ask your administrator to look at the log of the service."),
    404: ("Nothing is here", "The address is wrong, or the mail is too old to be kept. Start with a search."),
}


@page.app_errorhandler(HTTPException)
def refuse(error: HTTPException) -> tuple[str, int] | HTTPException:
    """Tell what to do, instead of the bare error."""
    if error.code is None or error.code < 400:
        return error  # a redirect
    title, advice = EXPLAINED.get(error.code, (error.name, error.description or ""))
    if error.description and error.description != type(error).description:
        advice = error.description
    return render_template("error.html", title=title, advice=advice), error.code


@page.app_errorhandler(EngineError)
def no_answer(error: EngineError) -> tuple[str, int]:
    """Tell that the engine did not answer; what it says is for the administrator only, as it may hold addresses."""
    current_app.logger.error("%s", error)
    if time.monotonic() - g.start >= state().settings.web.timeout_s:
        advice = "The answer took too long. Choose a shorter time range, or give the whole address of the recipient."
        return render_template("error.html", title="That took too long", advice=advice), 504
    advice = "Try again in a minute. If it stays so, ask your administrator to look at the log of the service."
    return render_template("error.html", title="The mail logs cannot be searched now", advice=advice), 503


@page.app_errorhandler(OSError)
@page.app_errorhandler(sqlite3.Error)
def no_file(error: OSError | sqlite3.Error) -> tuple[str, int]:
    """Tell that a file is missing or full: without its audit log, the page gives no answer."""
    current_app.logger.error("%s", error)
    advice = "A file of this page cannot be read or written. Ask your administrator to look at the log of the service."
    return render_template("error.html", title="This page needs its administrator", advice=advice), 503

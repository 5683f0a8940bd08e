# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page: `create_app()` gives it to gunicorn, whose settings are `mailreport.web.gunicorn`."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from pathlib import Path

from flask import Flask, Response, request

from mailreport.questions import Questions
from mailreport.settings import CONFIG, Settings
from mailreport.web import views
from mailreport.web.audit import Audit
from mailreport.web.auth import Lockout, Proxy, Sessions, Users

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",  # addresses of pages hold addresses of people
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def read_settings() -> Settings:
    """Read the settings, from where the environment says if it does."""
    return Settings.read(Path(os.environ.get("MAILREPORT_SETTINGS", CONFIG)))


def create_app(settings: Settings | None = None, questions: Questions | None = None) -> Flask:
    """Make the page."""
    settings = settings or read_settings()
    web = settings.web
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=_secret(web.secret_file),
        SESSION_COOKIE_NAME="mailreport",
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=timedelta(minutes=web.session_minutes),
        MAX_CONTENT_LENGTH=1 << 16,
    )
    app.session_interface = Sessions()
    app.extensions["mailreport"] = views.State(
        settings=settings,
        ask=cache(lambda: questions or Questions.of(settings)),
        users=Users(web.users_file),
        lockout=Lockout(web.lockout_file, web.lockout_tries, web.lockout_minutes),
        audit=Audit(web.audit_log),
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.register_blueprint(views.page)
    app.after_request(_harden)
    app.wsgi_app = Proxy(app.wsgi_app, web.proxy_addresses)  # type: ignore[method-assign]
    return app


def _secret(path: Path) -> bytes:
    """Give what sessions are signed with.

    :raises ValueError: it is too short to be one.
    """
    secret = path.read_bytes().strip()
    if len(secret) < 32:
        raise ValueError(f"{path} must hold at least 32 random characters: `openssl rand -hex 32` makes them.")
    return secret


def _harden(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    if request.endpoint != "static":
        response.headers["Cache-Control"] = "no-store"  # it is about people
    if request.is_secure:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    return response

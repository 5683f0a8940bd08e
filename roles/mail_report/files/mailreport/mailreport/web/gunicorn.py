# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of gunicorn: `gunicorn -c python:mailreport.web.gunicorn 'mailreport.web:create_app()'`."""

from __future__ import annotations

from mailreport.web import read_settings

_settings = read_settings()

bind = _settings.web.bind
workers = _settings.web.workers
worker_class = "gthread"
threads = 4  # while one waits for a long question, others answer
timeout = _settings.web.timeout_s + 30  # the question's own limit comes first, and tells what to do
graceful_timeout = _settings.web.timeout_s
certfile = str(_settings.web.certificate) if _settings.web.certificate else None
keyfile = str(_settings.web.key) if _settings.web.key else None
control_socket_disable = True  # systemd starts, reloads and stops it
forwarded_allow_ips = ""  # the page itself decides which proxy it believes
proc_name = "mailreport-web"

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log numbered lines as Postfix does, with a pause after each hundred of them.

load.py MARK COUNT PAUSE
"""

from __future__ import annotations

import sys
import syslog
import time


def main(mark: str, count: str, pause: str) -> None:
    syslog.openlog("load", syslog.LOG_PID, syslog.LOG_MAIL)
    for number in range(1, int(count) + 1):
        syslog.syslog(syslog.LOG_INFO, f"{mark} {number}")
        if number % 100 == 0:
            time.sleep(float(pause))


main(*sys.argv[1:])

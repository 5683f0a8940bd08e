# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roll-ups of an hour: DuckDB's SQL over a relation `attempts`, in the order of the files."""

from __future__ import annotations

# Words that differ from mail to mail: what is in <>, has a digit, an @ or a dot inside, and long hexadecimals.
_PART = r"[^\s,;()=<>\x22\x27]*"
_WORD = rf"(?:<[^<>]*>|{_PART}(?:[\d@]|\w\.\w){_PART}|\b[A-Fa-f]{{8,}}\b)"
_WORDS = rf"{_WORD}(?:\s+{_WORD})*"
_READ = 400  # characters of a response, which may be very long
_KEPT = 120

SQL = rf"""
WITH classed AS (
    SELECT
        host, recipient_domain, relay, outcome, dsn, response,
        TIME_BUCKET(INTERVAL 5 MINUTES, time) AS bucket,
        CASE WHEN delay_ms > 0 THEN CAST(FLOOR(2 * LOG2(delay_ms)) AS INTEGER) ELSE -1 END AS delay_class
    FROM attempts
)
SELECT
    CASE GROUPING(recipient_domain, relay, host)
        WHEN 3 THEN 'domain' WHEN 5 THEN 'relay' WHEN 6 THEN 'host' ELSE 'all'
    END AS dimension,
    COALESCE(recipient_domain, relay, host, '') AS key,
    bucket, outcome, delay_class, COUNT(*) AS attempts
FROM classed
GROUP BY GROUPING SETS (
    (bucket, outcome, delay_class),
    (bucket, outcome, delay_class, recipient_domain),
    (bucket, outcome, delay_class, relay),
    (bucket, outcome, delay_class, host)
)
UNION ALL
SELECT
    'error' AS dimension,
    LEFT(dsn || ' ' || REGEXP_REPLACE(LEFT(response, {_READ}), '{_WORDS}', '#', 'g'), {_KEPT}) AS key,
    bucket, outcome, delay_class, COUNT(*) AS attempts
FROM classed
WHERE outcome IN ('deferred', 'bounced', 'expired')
GROUP BY ALL
ORDER BY dimension, key, bucket, outcome, delay_class
"""

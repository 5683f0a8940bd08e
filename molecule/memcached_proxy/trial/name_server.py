"""A name server that does as /etc/name_server.json says at each moment: answer, answer nothing, fail, or be silent."""

from __future__ import annotations

import json
import socket
from itertools import count
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

PLAN = Path("/etc/name_server.json")


def answer(query: dns.message.Message, plan: dict[str, Any], turn: int) -> dns.message.Message:
    response = dns.message.make_response(query)
    response.flags |= dns.flags.AA
    question = query.question[0]
    name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
    if plan["mode"] == "fail":
        response.set_rcode(dns.rcode.SERVFAIL)
    elif plan["mode"] == "answer":
        records = plan["records"]
        if isinstance(records, list):  # one after the other
            records = records[turn % len(records)]
        found = records.get(f"{name} {kind}", [])
        if found:
            response.answer.append(dns.rrset.from_text_list(name, 0, "IN", kind, found))
    return response


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 5353))
        turns = count()
        while True:
            data, client = server.recvfrom(4096)
            plan = json.loads(PLAN.read_text())
            query = dns.message.from_wire(data)
            if plan["mode"] != "silent":
                # The service record of the first pool begins a turn.
                turn = next(turns) if query.question[0].name.to_text().startswith("_memcached._tcp.cache") else 0
                server.sendto(answer(query, plan, turn).to_wire(), client)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the records of pools in a DNS zone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: dns_records
short_description: Keep the records of pools in a DNS zone, with one signed update
version_added: 0.1.0
author: Tenfold maintainers (@tenfold-stack)
description:
  - Compares the records that pools are to have with those in the zone, and sends what differs as one dynamic update
    (RFC 2136), signed with a TSIG key. The server takes all of it or nothing.
  - The name of a pool has the addresses of all its members. Each member has a name of its own below it, and
    C(_<service>._tcp) below it lists their names with weights and ports (SRV).
  - Records of types A, AAAA and SRV at and below the name of a pool belong to the pool. All others in the zone are left
    alone.
  - An update only counts for the zone as it was read. When somebody else changed it in between, it is read again, so
    that runs at the same time can't spoil each other's work.
  - Runs on any host that reaches the server and has the key, usually on the server itself.
options:
  zone:
    description: Name of the zone.
    type: str
    required: true
  pools:
    description: The pools as they are to be. Pools that are not named here are left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Full name of the pool, below the name of the zone.
        type: str
        required: true
      state:
        description: V(absent) removes everything at and below the name, of whatever type.
        type: str
        choices: [present, absent]
        default: present
      service:
        description: Name of the service, for the SRV records. Without it there are none.
        type: str
      members:
        description: The members, as the filter P(tenfold.stack.pool_members#filter) gives them.
        type: list
        elements: dict
        default: []
        suboptions:
          label:
            description: Name of the member below the name of the pool.
            type: str
            required: true
          addresses:
            description: IPv4 and IPv6 addresses.
            type: list
            elements: str
            required: true
          port:
            description: Port for the SRV record.
            type: int
            required: true
          weight:
            description: Weight for the SRV record.
            type: int
            default: 10
  allow_empty:
    description: Whether a pool may be left without members. Otherwise that fails, as it usually is a mistake.
    type: bool
    default: false
  nameservers:
    description:
      - The name servers of the zone, the primary first. They become its NS records, and get their addresses.
      - If not given, these records are left alone.
    type: list
    elements: dict
    suboptions:
      label:
        description: Name of the server below the name of the zone.
        type: str
        required: true
      addresses:
        description: IPv4 and IPv6 addresses.
        type: list
        elements: str
        required: true
  soa:
    description:
      - What the SOA record says beside its serial number. Needs O(nameservers), the first of which is its primary.
      - If not given, it is left alone.
    type: dict
    suboptions:
      contact:
        description: Mailbox of those who look after the zone, written as a name such as V(hostmaster.example.net).
        type: str
        required: true
      refresh:
        description: Seconds after which secondaries ask for changes when nobody told them.
        type: int
        required: true
      retry:
        description: Seconds after which they ask again when they got no answer.
        type: int
        required: true
      expire:
        description: Seconds after which they stop answering when they got none at all.
        type: int
        required: true
      minimum:
        description: Seconds for which clients may remember that a name does not exist.
        type: int
        required: true
  ttl:
    description: Seconds for which clients may remember a record.
    type: int
    default: 5
  server:
    description: Address of the primary server of the zone.
    type: str
    default: 127.0.0.1
  port:
    description: Its port.
    type: int
    default: 53
  key_files:
    description:
      - Files on the host with the key in the form of C(tsig-keygen). The first that exists is used.
      - The server has to allow updates and transfers of the zone with it.
    type: list
    elements: path
    required: true
  timeout:
    description: Seconds to wait for each answer.
    type: float
    default: 5
  patience:
    description: Seconds to try again while the server can't be read from, as it does in the first moments of its life.
    type: float
    default: 0
requirements:
  - dnspython >= 2.1 (package C(python3-dns) on Enterprise Linux, C(python3-dnspython) on Debian)
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows the records that belong to the pools, before and after.
    support: full
  platform:
    description: Target OS it works on.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Let the name of a pool answer with its members
  tenfold.stack.dns_records:
    zone: example.net
    key_files: [/etc/named/keys/pool-dns.key]
    pools:
      - name: cache.example.net
        service: memcached
        members:
          - {label: cache-01, addresses: [192.0.2.11], port: 11211}
          - {label: cache-02, addresses: [192.0.2.12, "2001:db8::12"], port: 11211, weight: 20}

- name: Derive the members from the inventory, and remove a pool that is no more
  tenfold.stack.dns_records:
    zone: example.net
    key_files: [/etc/named/keys/pool-dns.key]
    pools:
      - name: cache.example.net
        members: "{{ pools[0] | tenfold.stack.pool_members(groups, hostvars)
                     | map('tenfold.stack.pick', ['label', 'addresses', 'port', 'weight']) }}"
      - name: sessions.example.net
        state: absent
"""

RETURN = r"""
added:
  description: Records that were added, as in a zone file.
  returned: success
  type: list
  elements: str
  sample: [cache.example.net. 5 IN A 192.0.2.12]
removed:
  description: Records that were removed. One whose TTL changed is in both lists.
  returned: success
  type: list
  elements: str
  sample: [cache.example.net. 5 IN A 192.0.2.19]
serial:
  description: Serial number of the zone, after the update if there was one.
  returned: success
  type: int
  sample: 2026112101
"""

import ipaddress
import os
import re
import time
import traceback
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import dns.exception
    import dns.message
    import dns.name
    import dns.query
    import dns.rcode
    import dns.rdata
    import dns.rdataclass
    import dns.rdatatype
    import dns.tsig
    import dns.tsigkeyring
    import dns.update
except ImportError:
    DNSPYTHON_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    DNSPYTHON_IMPORT_ERROR = None

POOL_TYPES = frozenset({"A", "AAAA", "SRV"})
ADDRESS_TYPES = frozenset({"A", "AAAA"})
SIGNATURE_TYPES = frozenset({"NSEC", "NSEC3", "RRSIG"})
"""Types that a server that signs the zone keeps itself."""

ATTEMPTS = 20  # updates that may be overtaken by somebody else's
PAUSE = 0.1  # seconds before the server is tried again

ALGORITHMS = ("hmac-sha1", "hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512")


class DnsError(Exception):
    """The records can't be kept; the message says what to change."""


class ServerError(DnsError):
    """The server does not do what it should, perhaps only not yet."""


class Overtaken(Exception):
    """The zone was changed after it was read."""


class Record(NamedTuple):
    """A record of the zone."""

    name: Any
    ttl: int
    rdata: Any

    @property
    def type(self) -> str:
        """Name of the type, such as A."""
        return dns.rdatatype.to_text(self.rdata.rdtype)

    def __str__(self) -> str:
        return f"{self.name} {self.ttl} IN {self.type} {self.rdata}"


def name_of(text: str, origin: Any = None) -> Any:
    """Give a name, below another if that is given.

    :raises DnsError: it is not one.
    """
    try:
        name = dns.name.from_text(text, origin or dns.name.root)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise DnsError(f'"{text}" can\'t be a name in DNS ({error}): correct it') from error
    return name.canonicalize()


def address_records(name: Any, ttl: int, addresses: list[str]) -> set[Record]:
    """Give the A and AAAA records of addresses.

    :raises DnsError: one of them is none.
    """
    records = set()
    for text in addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise DnsError(f'"{text}" of {name} is not an IP address: correct pool_addresses of the host') from None
        records.add(record(name, ttl, "A" if address.version == 4 else "AAAA", str(address)))
    return records


def record(name: Any, ttl: int, kind: str, text: str) -> Record:
    """Give the record that a line of a zone file describes.

    :raises DnsError: there can't be such a record.
    """
    try:
        return Record(name, ttl, dns.rdata.from_text("IN", kind, text))
    except (dns.exception.DNSException, ValueError) as error:
        raise DnsError(f'{name} can\'t have the {kind} record "{text}": {error}') from error


class Plan:
    """The records as they are to be, and which of the zone's records that concerns."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.zone = name_of(params["zone"])
        self.ttl: int = params["ttl"]
        self.states: dict[Any, str] = {}
        self.wanted: set[Record] = set()
        self.servers: list[Any] | None = None
        self.soa: dict[str, Any] | None = params["soa"]
        for pool in params["pools"]:
            self._place(name_of(pool["name"]), pool)
        for pool in params["pools"]:
            if pool["state"] == "present":
                self._add(name_of(pool["name"]), pool, params["allow_empty"])
        if params["nameservers"] is not None:
            self.servers = [self._add_server(server) for server in params["nameservers"]]

    def _place(self, name: Any, pool: dict[str, Any]) -> None:
        if name == self.zone or not name.is_subdomain(self.zone):
            raise DnsError(
                f"the pool {name} is not below the zone {self.zone}: change the name of the pool, or manage the zone "
                "that it is in"
            )
        if name in self.states:
            raise DnsError(f"the pool {name} is there twice: remove one of them")
        self.states[name] = pool["state"]

    def _add(self, name: Any, pool: dict[str, Any], allow_empty: bool) -> None:
        if not pool["members"] and not allow_empty:
            raise DnsError(
                f"the pool {name} would be left without members. Nothing was changed. Add a host to its group; if the "
                "pool is to go, set its state to absent; if it is to be empty, set allow_empty"
            )
        for member in pool["members"]:
            own = name_of(member["label"], name)
            if self.pool_of(own) != name:
                raise DnsError(f"{own} is a pool and a member of the pool {name}, too: rename one of them")
            self.wanted |= address_records(name, self.ttl, member["addresses"])
            self.wanted |= address_records(own, self.ttl, member["addresses"])
            if pool["service"]:
                service = name_of(f"_{pool['service']}._tcp", name)
                self.wanted.add(record(service, self.ttl, "SRV", f"0 {member['weight']} {member['port']} {own}"))

    def _add_server(self, server: dict[str, Any]) -> Any:
        name = name_of(server["label"], self.zone)
        if (pool := self.pool_of(name)) is not None:
            raise DnsError(f"the name server {name} is in the pool {pool}: rename one of them")
        self.wanted.add(record(self.zone, self.ttl, "NS", str(name)))
        self.wanted |= address_records(name, self.ttl, server["addresses"])
        return name

    def pool_of(self, name: Any) -> Any:
        """Give the innermost pool that a name is in, or None."""
        return max((pool for pool in self.states if name.is_subdomain(pool)), key=len, default=None)

    def concerned(self, present: set[Record]) -> set[Record]:
        """Give those of the zone's records that have to be as they are in `wanted`."""
        names: set[Any] = set()
        if self.servers is not None:
            # Also the addresses of servers that were replaced.
            names.update(self.servers)
            names.update(item.rdata.target.canonicalize() for item in present if self._is_apex_ns(item))
        found = set()
        for item in present:
            pool = self.pool_of(item.name)
            if pool is None:
                if (item.name in names and item.type in ADDRESS_TYPES) or (names and self._is_apex_ns(item)):
                    found.add(item)
            elif item.type not in SIGNATURE_TYPES and (self.states[pool] == "absent" or item.type in POOL_TYPES):
                found.add(item)
        return found

    def _is_apex_ns(self, item: Record) -> bool:
        return item.type == "NS" and item.name == self.zone

    def difference(self, present: set[Record]) -> tuple[set[Record], set[Record]]:
        """Give what has to be added to and removed from the zone.

        :raises DnsError: an alias is in the way.
        """
        concerned = self.concerned(present)
        added, removed = self.wanted - concerned, concerned - self.wanted
        for item in present - removed:
            if item.type == "CNAME" and any(item.name == other.name for other in self.wanted):
                raise DnsError(
                    f"{item.name} is an alias (CNAME) and can't have other records: remove the alias, or rename what "
                    "is to have its name"
                )
        if self.soa and self.servers:
            old = soa_of(present, self.zone)
            new = self._new_soa(old, self.soa, self.servers[0])
            if old.ttl != new.ttl or old.rdata.replace(serial=0) != new.rdata.replace(serial=0):
                added.add(new)
                removed.add(old)
        return added, removed

    def _new_soa(self, old: Record, soa: dict[str, Any], primary: Any) -> Record:
        contact = name_of(soa["contact"])
        numbers = f"{soa['refresh']} {soa['retry']} {soa['expire']} {soa['minimum']}"
        serial = (old.rdata.serial + 1) % 2**32 or 1
        return record(self.zone, self.ttl, "SOA", f"{primary} {contact} {serial} {numbers}")


def soa_of(records: set[Record], zone: Any) -> Record:
    """Give the SOA record of a zone."""
    return next(item for item in records if item.type == "SOA" and item.name == zone)


def read_key(paths: list[str]) -> dict[Any, Any]:
    """Give the key of the first of these files that exists, as a keyring.

    :raises DnsError: there is none.
    """
    path = next(filter(os.path.exists, paths), None)
    if path is None:
        raise DnsError(
            f"there is no key in {' or '.join(paths)} on this host: run the role pool_dns on the primary, or correct "
            "key_files"
        )
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeError) as error:
        raise DnsError(f"the key file {path} can't be read ({error}): run the task as root") from error
    clause = re.search(r'\bkey\s+"?([^"\s{]+)"?\s*\{(.*?)\}', text, re.DOTALL)
    fields = dict(re.findall(r'\b(algorithm|secret)\s+"?([^";]+?)"?\s*;', clause[2])) if clause else {}
    if clause is None or fields.get("algorithm", "").lower() not in ALGORITHMS or "secret" not in fields:
        raise DnsError(f"the file {path} does not hold a key: make it anew with tsig-keygen")
    try:
        return dns.tsigkeyring.from_text({clause[1]: (fields["algorithm"].lower(), fields["secret"])})
    except ValueError as error:
        raise DnsError(f"the secret in {path} is not Base64: make the key anew with tsig-keygen") from error


class Server:
    """The primary server of a zone."""

    def __init__(self, params: dict[str, Any], zone: Any, keyring: dict[Any, Any]) -> None:
        self.address: str = params["server"]
        self.port: int = params["port"]
        self.timeout: float = params["timeout"]
        self.zone = zone
        self.keyring = keyring
        self.key_name = next(iter(keyring))
        self.place = f"the DNS server {self.address} port {self.port}"

    def read(self) -> set[Record]:
        """Give all records of the zone.

        :raises ServerError: the server does not give them.
        """
        messages = dns.query.xfr(
            self.address,
            self.zone,
            port=self.port,
            keyring=self.keyring,
            timeout=self.timeout,
            lifetime=self.timeout,
            relativize=False,
        )
        try:
            return {
                Record(rrset.name.canonicalize(), rrset.ttl, rdata)
                for message in messages
                for rrset in message.answer
                for rdata in rrset
            }
        except dns.query.TransferError as error:
            raise self._refusal(error.rcode, "allow-transfer") from error
        except (OSError, EOFError, dns.exception.DNSException) as error:
            raise self._failure(error) from error

    def serial(self) -> int:
        """Give the serial number of the zone.

        :raises ServerError: the server does not give it.
        """
        query = dns.message.make_query(self.zone, "SOA")
        query.use_tsig(self.keyring)
        answer = self._ask(query)
        if answer.rcode() != dns.rcode.NOERROR or not answer.answer:
            raise self._refusal(answer.rcode(), "allow-query")
        return int(answer.answer[0][0].serial)

    def update(self, soa: Record, added: set[Record], removed: set[Record]) -> None:
        """Change the zone, if it still is as it was read.

        :raises Overtaken: it is not.
        :raises ServerError: the server refuses.
        """
        update = dns.update.UpdateMessage(self.zone, keyring=self.keyring)
        update.present(soa.name, soa.rdata)
        # What is added comes first: a server never gives up the last NS record.
        for item in sorted(added, key=str):
            update.add(item.name, item.ttl, item.rdata)
        kept = {(item.name, item.rdata) for item in added}
        for item in sorted(removed, key=str):
            if (item.name, item.rdata) not in kept:
                update.delete(item.name, item.rdata)
        rcode = self._ask(update).rcode()
        if rcode == dns.rcode.NXRRSET:
            raise Overtaken
        if rcode != dns.rcode.NOERROR:
            raise self._refusal(rcode, "update-policy or allow-update")

    def _ask(self, message: Any) -> Any:
        try:
            return dns.query.tcp(message, self.address, port=self.port, timeout=self.timeout)
        except (OSError, EOFError, dns.exception.DNSException) as error:
            raise self._failure(error) from error

    def _refusal(self, rcode: Any, permission: str) -> ServerError:
        told = dns.rcode.to_text(rcode)
        advice = {
            "REFUSED": f"allow the key {self.key_name} in {permission} of the zone",
            "NOTAUTH": "it is not authoritative for the zone: name its primary as server, or correct zone",
            "SERVFAIL": "it could not load or change the zone: look in its log (journalctl -u named)",
            "NOTIMP": "it does not take updates: name the zone's primary as server",
        }.get(told, "look in its log (journalctl -u named)")
        return ServerError(f"{self.place} answers {told} for the zone {self.zone}: {advice}")

    def _failure(self, error: Exception) -> ServerError:
        if isinstance(error, dns.tsig.PeerBadKey):
            text = f"does not know the key {self.key_name}: include its file in named.conf, or correct key_files"
        elif isinstance(error, (dns.tsig.PeerBadSignature, dns.tsig.BadSignature)):
            text = f"has another secret for the key {self.key_name}: give both the same key file"
        elif isinstance(error, dns.tsig.PeerBadTime):
            text = "has another time than this host: synchronize their clocks"
        elif isinstance(error, dns.exception.TooBig):
            text = "can't be sent so many changes in one update: name fewer pools at once"
        elif isinstance(error, (OSError, EOFError, dns.exception.Timeout)):
            text = f"does not answer ({error or type(error).__name__}): start it, or correct server and port"
        else:
            text = f"gives an answer that can't be read ({type(error).__name__}: {error}): look in its log"
        return ServerError(f"{self.place} {text}")


def read_patiently(server: Server, patience: float) -> set[Record]:
    """Read the zone; try again for some seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            return server.read()
        except ServerError:
            if time.monotonic() >= end:
                raise
            time.sleep(PAUSE)


def apply(module: AnsibleModule) -> dict[str, Any]:
    """Compare and update; give the module's result.

    :raises DnsError: that is not possible.
    """
    plan = Plan(module.params)
    server = Server(module.params, plan.zone, read_key(module.params["key_files"]))
    for _attempt in range(ATTEMPTS):
        present = read_patiently(server, module.params["patience"])
        soa = soa_of(present, plan.zone)
        added, removed = plan.difference(present)
        serial = soa.rdata.serial
        if (added or removed) and not module.check_mode:
            try:
                server.update(soa, added, removed)
            except Overtaken:
                continue
            serial = server.serial()
        concerned = plan.concerned(present) | (removed - plan.wanted)
        return {
            "changed": bool(added or removed),
            "added": sorted(map(str, added)),
            "removed": sorted(map(str, removed)),
            "serial": serial,
            "diff": {
                "before": lines(concerned),
                "after": lines((concerned - removed) | added),
                "before_header": f"zone {plan.zone}",
                "after_header": f"zone {plan.zone}",
            },
        }
    raise DnsError(
        f"the zone {plan.zone} was changed by somebody else {ATTEMPTS} times while it was being read: look who "
        "does that, and run this again"
    )


def lines(records: set[Record]) -> str:
    """Give records as in a zone file."""
    return "".join(f"{text}\n" for text in sorted(map(str, records)))


def main() -> None:
    """Run the module."""
    addresses = {"type": "list", "elements": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "zone": {"type": "str", "required": True},
            "pools": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                    "service": {"type": "str"},
                    "members": {
                        "type": "list",
                        "elements": "dict",
                        "default": [],
                        "options": {
                            "label": {"type": "str", "required": True},
                            "addresses": addresses,
                            "port": {"type": "int", "required": True},
                            "weight": {"type": "int", "default": 10},
                        },
                    },
                },
            },
            "allow_empty": {"type": "bool", "default": False},
            "nameservers": {
                "type": "list",
                "elements": "dict",
                "options": {"label": {"type": "str", "required": True}, "addresses": addresses},
            },
            "soa": {
                "type": "dict",
                "options": {
                    "contact": {"type": "str", "required": True},
                    "refresh": {"type": "int", "required": True},
                    "retry": {"type": "int", "required": True},
                    "expire": {"type": "int", "required": True},
                    "minimum": {"type": "int", "required": True},
                },
            },
            "ttl": {"type": "int", "default": 5},
            "server": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "default": 53},
            "key_files": {"type": "list", "elements": "path", "required": True, "no_log": False},
            "timeout": {"type": "float", "default": 5},
            "patience": {"type": "float", "default": 0},
        },
        required_by={"soa": "nameservers"},
        supports_check_mode=True,
    )
    if DNSPYTHON_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("dnspython"), exception=DNSPYTHON_IMPORT_ERROR)
    try:
        result = apply(module)
    except DnsError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn the variables of the role postfix into what Postfix takes, and tell what is wrong with them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from ansible.errors import AnsibleFilterError

Instance = dict[str, Any]

# What an instance of postfix_instances does not take from the default instance: it would collide there.
OWN = {
    "proxy_port": 0,
    "proxy_clients": [],
    "submission": False,
    "queue_volume": {},
}

SERVICE_FIELDS = ("private", "unprivileged", "chroot", "wakeup", "process_limit", "command", "options")
# Nothing runs in a chroot: the files that one needs would have to be kept the same as the host's.
SERVICE_DEFAULTS: dict[str, Any] = {**dict.fromkeys(SERVICE_FIELDS, "-"), "chroot": "n", "options": {}}
SERVICE_TYPES = ("inet", "unix", "unix-dgram", "fifo", "pass")
DAEMONS = re.compile(
    "anvil|bounce|cleanup|discard|dnsblog|error|flush|lmtp|local|oqmgr|pickup|pipe|postlogd|postscreen|proxymap|qmgr|"
    "qmqpd|scache|showq|smtp|smtpd|spawn|tlsmgr|tlsproxy|trivial-rewrite|verify|virtual"
)

# Tables by variable: the parameter that names the table, and what stands before the name there.
TABLES = {
    "transport": ("transport_maps", ""),
    "relay_domains": ("relay_domains", ""),
    "client_access": ("smtpd_client_restrictions", "check_client_access "),
    "sender_access": ("smtpd_sender_restrictions", "check_sender_access "),
    "recipient_access": ("smtpd_recipient_restrictions", "check_recipient_access "),
    "aliases": ("alias_maps", ""),
}
SUFFIXES = {"lmdb": ".lmdb", "hash": ".db", "cdb": ".cdb"}

# Wider networks than these are the world, not those that a site trusts.
WIDEST = {4: 8, 6: 32}
CLOSING = {"reject", "defer", "reject_unauth_destination", "defer_unauth_destination"}
# They permit only those that other settings name.
SAFE_PERMITS = {"permit_mynetworks", "permit_sasl_authenticated", "permit_auth_destination", "permit_tls_clientcerts"}
# Their defaults look like numbers or booleans, but they take more.
UNTYPED = {"compatibility_level", "lmtp_tcp_port", "smtpd_forbid_bare_newline"}

LISTEN_WORDS = ("all", "localhost")
SIZE_FACTOR = 1.5  # Postfix needs room for so many of the largest mail to accept one
DEFAULT_SIZE_LIMIT = "10240000"
# Hashes that Dovecot and crypt(3) know; nothing that can be read back.
HASHED = re.compile(
    r"\{(SHA512-CRYPT|SHA256-CRYPT|BLF-CRYPT|ARGON2ID?|CRYPT|PBKDF2|SSHA512|SSHA256)\}.|\$(2[aby]|5|6|y)\$."
)


def postfix_instance(given: Mapping[str, Any], defaults: Mapping[str, Any], platform: Mapping[str, Any]) -> Instance:
    """Complete the description of an instance.

    :param given: an element of ``postfix_instances``; an empty mapping is the default instance.
    :param defaults: the variables of the role without ``postfix_``.
    :param platform: ``version`` of Postfix, ``map_type``, ``ipv6``, and from the role's vars ``parameters``,
        ``services`` and ``tiers``.
    :return: all values, and derived from them ``folder``, ``queue``, ``parameters``, ``services`` (lines of master.cf)
        and ``tables``.
    :raises AnsibleFilterError: a service in ``postfix_master`` is not a mapping or null.
    """
    further = "name" in given
    instance: Instance = {**defaults, **(OWN if further else {}), **given}
    suffix = f"-{given['name']}" if further else ""
    instance["label"] = given.get("name", "default")
    instance["folder"] = f"/etc/postfix{suffix}"
    instance["queue"] = f"/var/spool/postfix{suffix}"
    instance["data"] = f"/var/lib/postfix{suffix}"
    instance["further"] = further
    instance["networks"] = [str(network) for network in instance["networks"]]
    tables = _tables(instance, platform)
    instance["tables"] = [table for table in tables if table["entries"]]
    instance["no_tables"] = [table for table in tables if not table["entries"]]
    instance["parameters"] = _parameters(instance, platform)
    instance["services"] = _services(instance, platform)
    return instance


def _tables(instance: Instance, platform: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = {name: dict(instance[name]) for name in TABLES}
    route = {"primary": f"fallback:{', '.join(instance['fallback_relay'])}", "fallback": "slow:"}.get(instance["tier"])
    if route:
        entries["transport"] = {**dict.fromkeys(instance["slow_domains"], route), **entries["transport"]}
    if instance["evacuate_to"]:
        entries["transport"] = {}
    kind = platform["map_type"]
    tables: list[dict[str, Any]] = [
        {
            "variable": f"postfix_{name}",
            "path": f"{instance['folder']}/{name}",
            "made": f"{instance['folder']}/{name}{SUFFIXES[kind]}",
            "entries": [f"{key}{':' if name == 'aliases' else ''}\t{value}" for key, value in entries[name].items()],
            "command": [
                "postalias" if name == "aliases" else "postmap",
                f"{kind}:{{root}}{instance['folder']}/{name}",
            ],
            "keys": entries[name],
        }
        for name in TABLES
    ]
    checks = [f"{check['pattern']} {check['action']}" for check in instance["header_checks"]]
    tables.append(
        {
            "variable": "postfix_header_checks",
            "path": f"{instance['folder']}/header_checks",
            "made": None,
            "entries": checks,
            "command": ["postmap", "-q", "Subject: any", f"regexp:{{root}}{instance['folder']}/header_checks"],
            "keys": {},
        }
    )
    return tables


def _parameters(instance: Instance, platform: Mapping[str, Any]) -> dict[str, str]:
    """Give main.cf: what every host has, then the tier, then what variables say, then the user."""
    ipv6 = platform["ipv6"]
    networks = [network for network in instance["networks"] if ipv6 or ":" not in network]
    listen = ["loopback-only" if word == "localhost" else str(word) for word in instance["listen"]]
    found: dict[str, Any] = {
        **platform["parameters"],
        **{
            row["setting"]: _resolved(row["value"], instance)
            for row in _tier_rows(instance, platform)
            if "service" not in row
        },
        "myhostname": instance["hostname"],
        "inet_interfaces": listen,
        "inet_protocols": "all" if ipv6 else "ipv4",
        "mynetworks": [re.sub(r"^([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)", r"[\1]", network) for network in networks],
        "smtpd_relay_restrictions": [
            "permit_mynetworks",
            *(["permit_sasl_authenticated"] if instance["submission"] else []),
            "reject_unauth_destination",
        ],
        "queue_minfree": instance["queue_minfree"],
        "alias_database": "$alias_maps",
        "alias_maps": "",
        "smtp_tls_security_level": instance["tls_level_out"],
        "smtp_tls_CAfile": instance["tls_ca"],
        "smtpd_tls_security_level": instance["tls_level_in"],
    }
    if instance["tls_certificate"]:
        found["smtpd_tls_cert_file"] = instance["tls_certificate"]
        found["smtpd_tls_key_file"] = instance["tls_key"]
    kind = platform["map_type"]
    for table in instance["tables"]:
        if table["made"]:
            parameter, before = TABLES[table["variable"].removeprefix("postfix_")]
            found[parameter] = f"{before}{kind}:{table['path']}"
        else:
            found["header_checks"] = f"regexp:{table['path']}"
    if instance["further"]:
        found["queue_directory"] = instance["queue"]
        found["data_directory"] = instance["data"]
        found["multi_instance_name"] = f"postfix-{instance['name']}"
        found["multi_instance_enable"] = "yes"
    elif instance["instances"]:
        found["multi_instance_wrapper"] = "${command_directory}/postmulti -p --"
        found["multi_instance_enable"] = "yes"
        found["multi_instance_directories"] = [f"/etc/postfix-{other['name']}" for other in instance["instances"]]
    found.update(instance["main"])
    if instance["evacuate_to"]:
        # Everything goes there, and nothing new comes in by the network.
        found.update(
            relayhost=instance["evacuate_to"],
            transport_maps="",
            smtp_fallback_relay="",
            master_service_disable="inet",
            queue_run_delay="10s",
            minimal_backoff_time="10s",
            maximal_backoff_time="30s",
        )
    return {name: _text(value) for name, value in sorted(found.items()) if value is not None}


def _services(instance: Instance, platform: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the services of master.cf."""
    services: dict[str, dict[str, Any]] = {name: dict(fields) for name, fields in platform["services"].items()}
    for row in _tier_rows(instance, platform):
        if "service" in row:
            services.setdefault(row["service"], {})[row["setting"]] = _resolved(row["value"], instance)
    direct = services.pop("smtp/inet")
    listeners = {f"{instance['port']}/inet": direct}
    if instance["proxy_port"]:
        listeners[f"{instance['proxy_port']}/inet"] = {
            **direct,
            "options": {"smtpd_upstream_proxy_protocol": "haproxy", "syslog_name": "postfix/lb"},
        }
    if instance["submission"]:
        listeners[f"{instance['submission_port']}/inet"] = {
            **direct,
            "options": {
                "syslog_name": "postfix/submission",
                "smtpd_tls_security_level": "encrypt",
                "smtpd_sasl_auth_enable": "yes",
                "smtpd_sasl_type": "dovecot",
                "smtpd_sasl_path": "private/auth",
                "smtpd_client_restrictions": "",
                "smtpd_sender_restrictions": "",
                "smtpd_recipient_restrictions": "",
                "smtpd_relay_restrictions": "permit_sasl_authenticated,reject",
            },
        }
    services = {**listeners, **services}
    for name, fields in instance["master"].items():
        # Its usual name stands for the service on the port.
        key = f"{instance['port']}/inet" if name == "smtp/inet" else name
        if fields is None:
            services.pop(key, None)
        elif isinstance(fields, Mapping):
            before = services.get(key, {})
            options = {**before.get("options", {}), **(fields.get("options") or {})}
            services[key] = {**before, **fields, "options": options}
        else:
            raise AnsibleFilterError(f"postfix_master: {name} has to be a mapping of fields, or null to remove it")
    if instance["evacuate_to"]:
        # What was being delivered when it was reloaded is only looked at again then.
        services["qmgr/unix"] = {**services["qmgr/unix"], "wakeup": 10}
    return [_service(name, fields) for name, fields in services.items()]


def _service(key: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    name, _slash, kind = key.rpartition("/")
    full = {**SERVICE_DEFAULTS, **{field: value for field, value in fields.items() if value is not None}}
    flags = {field: {True: "y", False: "n"}.get(full[field], full[field]) for field in SERVICE_FIELDS[:3]}
    options = {option: _text(value) for option, value in full["options"].items() if value is not None}
    return {"key": key, "name": "smtp" if name == "25" else name, "type": kind, **full, **flags, "options": options}


def _tier_rows(instance: Instance, platform: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Give the rows of the tier that this version of Postfix knows."""
    version = _version(platform["version"])
    for row in platform["tiers"].get(instance["tier"], []):
        if version >= _version(row.get("since", "0")):
            yield row


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _resolved(value: Any, instance: Instance) -> Any:
    """Give a value of the table of tiers; <postfix_x> stands for that of the variable."""
    if isinstance(value, str) and (match := re.fullmatch(r"<postfix_(\w+)>", value)):
        return instance[match[1]]
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def postfix_problems(instances: Sequence[Instance], host: Mapping[str, Any]) -> list[str]:
    """Tell why the instances of a host can't be what was asked for, before anything is changed.

    :param instances: from `postfix_instance`, the default one first.
    :param host: ``names`` by which the host and its pools are known, ``missing_files`` of those that the instances
        name, and ``submission_users``.
    :return: a sentence for each problem, which names the variable to change.
    """
    problems = [
        f"{problem} (instance {instance['label']})." if instance["further"] else f"{problem}."
        for instance in instances
        for problem in _instance_problems(instance, host)
    ]
    for one, other in combinations(instances, 2):
        if one["label"] == other["label"]:
            problems.append(f"Two elements of postfix_instances are called {one['label']}: rename one.")
        for port in sorted({port for port, _of in _ports(one)} & {port for port, _of in _ports(other)}):
            shared = set(one["listen"]) & set(other["listen"])
            if shared or "all" in one["listen"] + other["listen"]:
                problems.append(
                    f"The instances {one['label']} and {other['label']} both listen on port {port}: give one of them "
                    "another port or listen in postfix_instances."
                )
    return problems


def _instance_problems(instance: Instance, host: Mapping[str, Any]) -> Iterator[str]:
    yield from _form_problems(instance, host)
    yield from _open_relay_problems(instance)
    yield from _service_problems(instance)
    yield from _table_problems(instance)
    yield from _loop_problems(instance, host)
    yield from _storage_problems(instance)


def _ports(instance: Instance) -> list[tuple[int, str]]:
    ports = [(int(instance["port"]), "postfix_port")]
    if instance["proxy_port"]:
        ports.append((int(instance["proxy_port"]), "postfix_proxy_port"))
    if instance["submission"]:
        ports.append((int(instance["submission_port"]), "postfix_submission_port"))
    return ports


def _form_problems(instance: Instance, host: Mapping[str, Any]) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", str(instance["hostname"])):
        yield f"postfix_hostname, {instance['hostname']}, is not a host name: change it"
    if instance["further"] and not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", instance["label"]):
        yield f"The name {instance['label']} in postfix_instances has to be of small letters, digits, - and _"
    for address in instance["listen"]:
        if address not in LISTEN_WORDS and not _is_network(address, whole=False):
            yield f"postfix_listen names {address}: it takes addresses, or all, or localhost"
    if not instance["listen"]:
        yield "postfix_listen is empty: name the addresses to listen on, or all, or localhost"
    for port, variable in _ports(instance):
        if not 0 < port < 65536:
            yield f"{variable} is {port}: set it to a port from 1 to 65535"
    for (port, variable), (other, name) in combinations(_ports(instance), 2):
        if port == other:
            yield f"{variable} and {name} are both {port}: give one of them another port"
    for variable in ("fallback_relay", "evacuate_to"):
        for place in _places(instance[variable]):
            if not re.fullmatch(r"(\[[^\[\]\s]+\]|[A-Za-z0-9.-]+)(:\d+)?", place):
                yield f"postfix_{variable} names {place}: write it as [host] or [host]:port"
    if bool(instance["tls_certificate"]) != bool(instance["tls_key"]):
        yield "postfix_tls_certificate and postfix_tls_key go together: set both"
    if instance["tls_level_in"] != "none" and not instance["tls_certificate"]:
        yield "postfix_tls_level_in asks for TLS without a certificate: set postfix_tls_certificate and postfix_tls_key"
    for variable in ("tls_certificate", "tls_key", "tls_ca"):
        if instance[variable] in host["missing_files"]:
            yield f"{instance[variable]} is not on the host: put it there before, or change postfix_{variable}"
    if instance["submission"]:
        yield from _submission_problems(instance, host)


def _submission_problems(instance: Instance, host: Mapping[str, Any]) -> Iterator[str]:
    if instance["further"]:
        yield "postfix_submission is only for the default instance: remove it from postfix_instances"
    if not instance["tls_certificate"]:
        yield "postfix_submission takes passwords, which needs TLS: set postfix_tls_certificate and postfix_tls_key"
    if not host["submission_users"]:
        yield "postfix_submission has no users: name them in postfix_submission_users"
    for user in host["submission_users"]:
        if not re.fullmatch(r"[^:\s]+", str(user["name"])):
            yield f"postfix_submission_users names {user['name']!r}: a name has neither spaces nor colons"
        if not HASHED.match(str(user["password"])) or re.search(r"[:\s]", str(user["password"])):
            yield (
                f"The password of {user['name']} in postfix_submission_users is not hashed: give what "
                "`doveadm pw -s SHA512-CRYPT` prints"
            )


def _is_network(text: Any, whole: bool = True) -> bool:
    try:
        ipaddress.ip_network(text) if whole else ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _words(text: str) -> list[str]:
    return re.split(r"[,\s]+", text.strip(", \t\n")) if text.strip(", \t\n") else []


def _places(value: str | Iterable[str]) -> list[str]:
    return [word for part in ([value] if isinstance(value, str) else value) for word in _words(str(part))]


# An open relay


def _open_relay_problems(instance: Instance) -> Iterator[str]:
    main = instance["parameters"]
    yield from _network_problems(main.get("mynetworks", ""), "postfix_networks or postfix_main")
    for text in _words(main.get("relay_domains", "")):
        if text.startswith(("static:", "regexp:", "pcre:")):
            yield f"relay_domains in postfix_main is {text}, which may be any domain: use postfix_relay_domains"
    if "*" in instance["relay_domains"]:
        yield "postfix_relay_domains has *, which makes an open relay: name the domains"
    for service in instance["services"]:
        if _program(service) != "smtpd":
            continue
        where = f"the service {service['key']} of postfix_master"
        options = service["options"]
        settings = {**main, **options}
        if "mynetworks" in options:
            yield from _network_problems(options["mynetworks"], where)
        if settings.get("smtpd_upstream_proxy_protocol") and service["key"] != f"{instance['proxy_port']}/inet":
            yield (
                f"{where} expects the PROXY protocol, by which everyone can claim any address: remove "
                "smtpd_upstream_proxy_protocol and use postfix_proxy_port, which the role guards"
            )
        relay = settings.get("smtpd_relay_restrictions", "")
        checked = relay if _words(relay) else settings.get("smtpd_recipient_restrictions", "")
        if opening := _opening(checked, settings):
            yield (
                f"Port {service['key'].partition('/')[0]} would be an open relay, as {opening} in its "
                f"smtpd_relay_restrictions: change postfix_main or {where}"
            )
    if instance["proxy_port"] and not instance["proxy_clients"]:
        yield (
            "postfix_proxy_port lets whoever reaches it claim any address: name the balancers in postfix_proxy_clients "
            "or set it to 0"
        )
    for client in instance["proxy_clients"]:
        if not _is_network(client):
            yield f"postfix_proxy_clients names {client}: it takes addresses and networks"
        elif ipaddress.ip_network(client).prefixlen < WIDEST[ipaddress.ip_network(client).version]:
            yield f"postfix_proxy_clients lets {client} claim any address: name only the balancers"


def _network_problems(text: str, where: str) -> Iterator[str]:
    for word in _words(text):
        plain = re.sub(r"[\[\]]", "", word.removeprefix("!"))
        try:
            network = ipaddress.ip_network(plain)
        except ValueError:
            yield (
                f"{word} is no network, or has bits beside its prefix: change {where} (names and tables are not taken, "
                "as the role could not see whom they let relay)"
            )
            continue
        if network.prefixlen < WIDEST[network.version] and not word.startswith("!"):
            yield (
                f"{plain} may relay, which makes an open relay: name the networks that you trust in {where}, of "
                f"/{WIDEST[network.version]} at most"
            )


def _opening(restrictions: str, settings: Mapping[str, str]) -> str:
    """Tell what in a list of restrictions lets strangers relay, or give an empty text."""
    words = _words(_expanded(restrictions, settings))
    for word in words:
        if word in CLOSING:
            return ""
        if word.startswith("permit") and word not in SAFE_PERMITS:
            return f"{word} comes before reject_unauth_destination"
        if re.match(r"check_\w+_access$|check_policy_service$", word):
            return f"{word}, which may permit, comes before reject_unauth_destination"
        if word in _words(settings.get("smtpd_restriction_classes", "")):
            return f"the class {word}, which may permit, comes before reject_unauth_destination"
    return "nothing rejects what is for other domains (reject_unauth_destination)"


def _expanded(text: str, settings: Mapping[str, str]) -> str:
    for _depth in range(5):
        text = re.sub(r"\$[({]?(\w+)[)}]?", lambda match: settings.get(match[1], ""), text)
    return text


# Services and tables


def _program(service: Mapping[str, Any]) -> str:
    return (_words(str(service["command"])) or [""])[0]


def _service_problems(instance: Instance) -> Iterator[str]:
    for service in instance["services"]:
        key = service["key"]
        if service["type"] not in SERVICE_TYPES or not service["name"] or re.search(r"\s", key):
            yield f"postfix_master names {key}: write it as name/type, with a type of {', '.join(SERVICE_TYPES)}"
            continue
        if strange := set(service) - {*SERVICE_FIELDS, "key", "name", "type"}:
            yield f"{', '.join(sorted(strange))} of {key} in postfix_master is not one of {', '.join(SERVICE_FIELDS)}"
        if not DAEMONS.fullmatch(_program(service)):
            yield f"The command of {key} in postfix_master, {service['command']}, is no daemon of Postfix: change it"
        for field, values in (
            ("private", "[-yn]"),
            ("unprivileged", "[-yn]"),
            ("chroot", "[-yn]"),
            ("wakeup", r"-|\d+\??"),
            ("process_limit", r"-|\d+"),
        ):
            if not re.fullmatch(values, str(service[field])):
                yield f"{field} of {key} in postfix_master can't be {service[field]}: change it"


def _table_problems(instance: Instance) -> Iterator[str]:
    for table in instance["tables"]:
        for key, value in table["keys"].items():
            if not str(key) or re.search(r"\s", str(key)):
                yield f"{table['variable']} has the key {key!r}: a key has no spaces"
            if not str(value).strip() or "\n" in str(value):
                yield f"{table['variable']} has nothing, or several lines, for {key}: give it one line"
    transports = {service["name"] for service in instance["services"] if service["type"] == "unix"}
    for domain, route in instance["transport"].items():
        name, colon, _next = str(route).partition(":")
        if not colon:
            yield f"postfix_transport has {route} for {domain}: write it as transport:nexthop, as in smtp:[192.0.2.1]"
        elif name and name not in transports:
            yield f"postfix_transport has the transport {name} for {domain}: define {name}/unix in postfix_master"
    for check in instance["header_checks"]:
        if "\n" in f"{check['pattern']}{check['action']}":
            yield f"postfix_header_checks has several lines in {check['pattern']!r}: one is allowed"


# The tiers


def _loop_problems(instance: Instance, host: Mapping[str, Any]) -> Iterator[str]:
    own = {name.lower() for name in host["names"]} | {str(instance["hostname"]).lower()}
    main = instance["parameters"]
    if instance["tier"] == "fallback":
        relays = [main.get("smtp_fallback_relay", "")]
        relays += [service["options"].get("smtp_fallback_relay", "") for service in instance["services"]]
        if instance["fallback_relay"] or any(map(_words, relays)):
            yield (
                "A host of the tier fallback has nothing behind it, and mail would loop: set postfix_fallback_relay "
                "to [] and remove smtp_fallback_relay from postfix_main and postfix_master"
            )
    if instance["tier"] == "primary" and not instance["evacuate_to"]:
        if not _words(main.get("smtp_fallback_relay", "")):
            yield "A host of the tier primary needs the fallback tier: set postfix_fallback_relay, as in [192.0.2.1]"
        elif instance["slow_domains"] and not instance["fallback_relay"]:
            yield "postfix_slow_domains are routed to the fallback tier: set postfix_fallback_relay"
    targets = {
        "postfix_fallback_relay": [main.get("smtp_fallback_relay", "")],
        "relayhost in postfix_main": [instance["main"].get("relayhost") or ""],
        "postfix_evacuate_to": [instance["evacuate_to"]],
        "postfix_transport": [str(route).partition(":")[2] for route in instance["transport"].values()],
    }
    for variable, texts in targets.items():
        for place in _places(texts):
            if _host_of(place) in own:
                yield f"{variable} names {place}, which is this host or its own pool, and mail would loop: name another"


def _host_of(place: str) -> str:
    match = re.match(r"\[([^\]]+)\]|([^:]+)", place)
    return (match[1] or match[2]).lower() if match else place.lower()


def _storage_problems(instance: Instance) -> Iterator[str]:
    main = instance["parameters"]
    free, limit = main.get("queue_minfree", "0"), main.get("message_size_limit", DEFAULT_SIZE_LIMIT)
    if free.isdigit() and limit.isdigit() and int(free) < SIZE_FACTOR * int(limit):
        yield (
            f"postfix_queue_minfree is {free}, but has to be {SIZE_FACTOR} times message_size_limit ({limit}) at "
            f"least: set it to {int(SIZE_FACTOR * int(limit))} or more"
        )
    volume = instance["queue_volume"]
    if not volume:
        return
    if strange := set(volume) - {"src", "fstype", "opts"}:
        yield f"postfix_queue_volume has {', '.join(sorted(strange))}: it takes src, fstype and opts"
    source = str(volume.get("src", ""))
    if not re.match(r"/|UUID=|LABEL=|PARTUUID=", source):
        yield f"postfix_queue_volume has src {source!r}: name a device, UUID=…, LABEL=…, or a folder"
    if volume.get("fstype") in ("tmpfs", "ramfs"):
        yield "postfix_queue_volume is in memory, and a power failure would lose mail: use a disk"
    if source.rstrip("/") == instance["queue"]:
        yield f"postfix_queue_volume has src {source}, which is the queue itself: name where it is to be"


def postfix_value_problems(instances: Sequence[Instance], known: str) -> list[str]:
    """Tell which values Postfix would not understand. Its own check only looks at some.

    :param instances: from `postfix_instance`.
    :param known: what ``postconf -d`` of the host prints.
    :return: a sentence for each problem, which names the variable to change.
    """
    defaults = dict(line.split(" = ", 1) for line in known.splitlines() if " = " in line)
    places = [
        (settings, where)
        for instance in instances
        for settings, where in [
            (instance["parameters"], "postfix_main"),
            *((service["options"], f"{service['key']} of postfix_master") for service in instance["services"]),
        ]
    ]
    return [
        f"{name} can't be {value!r}: it takes {form}. Change {where}."
        for settings, where in places
        for name, value in settings.items()
        if (form := _wrong_form(name, value, defaults))
    ]


def _wrong_form(name: str, value: str, defaults: Mapping[str, str]) -> str:
    """Tell what a parameter takes, if the value is not that."""
    default = defaults.get(name, "")
    if name in UNTYPED or "$" in value:
        return ""
    for form, shape, told in (
        (r"\d+", r"-?\d+", "a number"),
        (r"\d+[smhdw]", r"\d+[smhdw]?", "a time such as 30s, 5m, 2h or 3d"),
        ("yes|no", "(?i)yes|no", "yes or no"),
    ):
        if re.fullmatch(form, default) and not re.fullmatch(shape, value):
            return told
    return ""


class FilterModule:
    """Filters of the role postfix."""

    def filters(self) -> dict[str, Any]:
        return {
            "postfix_instance": postfix_instance,
            "postfix_problems": postfix_problems,
            "postfix_value_problems": postfix_value_problems,
        }

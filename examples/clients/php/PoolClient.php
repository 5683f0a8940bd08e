<?php

// Copyright: Tenfold contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

declare(strict_types=1);

/**
 * A memcached pool that is found by DNS, for php-memcached 3.2 and later.
 *
 * The pool's name gives its members, libmemcached's ring places the keys, and a node that restarts is waited for.
 *
 *     $cache = new PoolClient('cache.example.net');
 *     $cache->set('item:1', 'value', 600);
 *
 * It is used like a \Memcached. A command that fails gives false, and getResultCode() tells why.
 *
 * @mixin \Memcached
 */
final class PoolClient
{
    private const AWAY = [
        \Memcached::RES_CONNECTION_FAILURE,
        \Memcached::RES_WRITE_FAILURE,
        \Memcached::RES_READ_FAILURE,
        \Memcached::RES_UNKNOWN_READ_FAILURE,
        \Memcached::RES_ERRNO,
        \Memcached::RES_TIMEOUT,
        \Memcached::RES_SERVER_MARKED_DEAD,
        \Memcached::RES_SERVER_TEMPORARILY_DISABLED,
    ];
    // A lost answer does not tell whether these were done, so they are never sent twice.
    private const ONCE = ['add', 'append', 'cas', 'decrement', 'increment', 'prepend', 'replace'];
    private const REPEATABLE = ['delete', 'get', 'getMulti', 'set', 'touch'];
    private const RETRY_DNS = 5.0; // seconds after a failed answer
    private const PAUSE = 50_000; // microseconds between two questions whether a node is back

    private \Memcached $memcached;
    /** @var list<array{string, int, int}> address, port and weight */
    private array $members = [];
    /** @var array<string, float> since when a node is away */
    private array $away = [];
    private ?bool $hasSrv = null;
    private float $due = 0.0;

    /**
     * @param string $pool the name; it has to answer at first, later an empty or failed answer changes nothing
     * @param string $service the members and their weights are the SRV records of _service._tcp.pool
     * @param int $port of the members of a name without SRV records: those are its addresses
     * @param float $patience for how many seconds a node may be away before its commands fail; the keys stay on it
     * @param bool $persistent keep connections and members for the next request that this process serves
     */
    public function __construct(
        private readonly string $pool,
        private readonly string $service = 'memcached',
        private readonly int $port = 11211,
        private readonly float $patience = 5.0,
        bool $persistent = false,
    ) {
        $this->memcached = new \Memcached($persistent ? $pool : null);
        if ($this->memcached->isPristine()) {
            $this->memcached->setOptions([
                \Memcached::OPT_LIBKETAMA_COMPATIBLE => true, // the weighted ring and MD5
                \Memcached::OPT_TCP_NODELAY => true,
                \Memcached::OPT_CONNECT_TIMEOUT => 1000,
                \Memcached::OPT_POLL_TIMEOUT => 1000,
                \Memcached::OPT_RETRY_TIMEOUT => 1, // in whole seconds, so that a node is found back up to two seconds late
            ]);
        }
        $this->renew();
        if (!$this->memcached->getServerList()) {
            throw new \RuntimeException("DNS gives no members of $pool: check the name and the resolver of this host");
        }
    }

    /** Ask DNS for the members now. A failed answer changes nothing. */
    public function renew(): void
    {
        [$members, $ttl] = $this->lookUp() ?? [[], self::RETRY_DNS];
        $this->due = self::now() + max($ttl, 1);
        if (!$members) {
            return;
        }
        sort($members);
        $known = array_map(fn($server) => [$server['host'], $server['port']], $this->memcached->getServerList());
        $found = array_map(fn($member) => array_slice($member, 0, 2), $members);
        // The list of a persistent connection tells no weights.
        if ($found !== $known || $this->members && $this->members !== $members) {
            $this->memcached->resetServerList();
            $this->memcached->addServers($members);
        }
        $this->members = $members;
    }

    public function __call(string $name, array $arguments): mixed
    {
        $once = in_array($name, self::ONCE, true);
        if (!$once && !in_array($name, self::REPEATABLE, true)) {
            return $this->memcached->$name(...$arguments);
        }
        if (self::now() >= $this->due) {
            $this->renew();
        }
        $keys = (array) $arguments[0];
        if ($once) { // the question renews a connection that a restart has closed
            return $this->waitFor($keys) ? $this->memcached->$name(...$arguments) : false;
        }
        $end = self::now() + $this->patience;
        do {
            $result = $this->memcached->$name(...$arguments);
        } while ($this->failed() && self::now() < $end && $this->waitFor($keys));
        return $result;
    }

    /** Like \Memcached's, which gives true although a node that is away got nothing. */
    public function setMulti(array $items, int $expiration = 0): bool
    {
        $done = true;
        foreach ($items as $key => $value) {
            $done = $this->set((string) $key, $value, $expiration) && $done;
        }
        return $done;
    }

    /** @return array<string, bool> whether each key was deleted */
    public function deleteMulti(array $keys): array
    {
        return array_combine($keys, array_map(fn($key) => $this->delete($key), $keys));
    }

    private function failed(): bool
    {
        // The result code of getMulti is a success when only some nodes answered.
        return in_array($this->memcached->getLastErrorCode(), self::AWAY, true);
    }

    /** Wait until the nodes of these keys answer. Once patience has ended a node is asked only once. */
    private function waitFor(array $keys): bool
    {
        foreach ($keys as $key) {
            $server = $this->memcached->getServerByKey((string) $key);
            $nodes["{$server['host']}:{$server['port']}"] = (string) $key;
        }
        $answer = true;
        foreach ($nodes ?? [] as $node => $key) {
            for (;;) {
                $this->memcached->touchByKey($key, 'pool-client', 1); // does not count for the hit rate, as a get would
                if (!$this->failed()) {
                    unset($this->away[$node]);
                    continue 2;
                }
                $this->away[$node] ??= self::now();
                if (self::now() - $this->away[$node] >= $this->patience) {
                    $answer = false;
                    continue 2;
                }
                usleep(self::PAUSE);
            }
        }
        return $answer;
    }

    private static function now(): float
    {
        return hrtime(true) / 1e9;
    }

    /** @return array{list<array{string, int, int}>, int}|null members and TTL, null unless all of them are known */
    private function lookUp(): ?array
    {
        if ($this->hasSrv !== false) {
            $records = $this->ask("_{$this->service}._tcp.{$this->pool}", DNS_SRV, $additional);
            if ($records) {
                foreach ($records as ['target' => $target, 'port' => $port, 'weight' => $weight]) {
                    $sent = array_filter($additional, fn($more) => $more['host'] === $target && $more['type'] === 'A');
                    $addresses = $this->addresses($sent ?: $this->askAddresses($target));
                    if (!$addresses) {
                        return null;
                    }
                    $members[] = [$addresses[0], $port, max($weight, 1)];
                }
                $this->hasSrv = true;
                return [$members, min(array_column($records, 'ttl'))];
            }
            if ($records === false || $this->hasSrv) { // the name's addresses would be the members at another port
                return null;
            }
        }
        $records = $this->askAddresses($this->pool);
        if (!$records) {
            return null;
        }
        $this->hasSrv = false;
        $members = array_map(fn($address) => [$address, $this->port, 1], $this->addresses($records));
        return [$members, min(array_column($records, 'ttl'))];
    }

    /** @return list<string> lowest first, as DNS gives them in any order and the first places a member */
    private function addresses(array $records): array
    {
        $addresses = array_map(fn($record) => $record['ip'] ?? $record['ipv6'], $records);
        usort($addresses, fn($one, $other) => strcmp(inet_pton($one), inet_pton($other)));
        return $addresses;
    }

    private function askAddresses(string $name): array
    {
        $records = $this->ask($name, DNS_A) ?: $this->ask($name, DNS_AAAA) ?: [];
        return array_filter($records, fn($record) => isset($record['ip']) || isset($record['ipv6'])); // not CNAMEs
    }

    private function ask(string $name, int $type, ?array &$additional = null): array|false
    {
        putenv('RES_OPTIONS=timeout:1 attempts:1'); // by default a request could wait ten seconds for DNS
        $authority = [];
        $additional = [];
        return @dns_get_record("$name.", $type, $authority, $additional);
    }
}

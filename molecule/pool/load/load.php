#!/usr/bin/env php
<?php

// Copyright: Tenfold contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// load.py's sibling: the same options (PHP has no choice of name servers), workload and report.

declare(strict_types=1);

const PADDING = 200;
const LIFETIME = 3600; // seconds
const ERRORS_TOLD = 10;
const BATCH = 20; // operations
const SHARES = ['get' => 80, 'set' => 8, 'getMulti' => 6, 'delete' => 2, 'increment' => 4]; // in a hundred operations

/** A cache's user: it knows which version of each value it has written. */
final class Load
{
    private string $prefix;
    private array $sent = []; // the newest version that was sent
    private array $stored = []; // no older version may be seen
    private array $counters = []; // the last value, and how many answers were lost since
    private array $operations = [];
    private array $counts = ['errors' => 0, 'hits' => 0, 'misses' => 0, 'stale' => 0, 'wrong' => 0];
    private array $told = [];
    private array $timeline = [];
    private array $latencies = []; // by microseconds of two digits
    private float $longest = 0.0;

    public function __construct(private readonly PoolClient|Memcached $cache, private readonly int $keys)
    {
        $this->prefix = gethostname() . '-' . getmypid();
    }

    /** Work at so many operations a second until the file appears, and write the report each second and at the end. */
    public function run(float $rate, ?string $until, string $report): void
    {
        foreach (SHARES as $kind => $share) {
            $kinds = array_merge($kinds ?? [], array_fill(0, $share, $kind));
        }
        $started = microtime(true);
        $second = (int) $started;
        $before = $this->counts + ['operations' => 0];
        while (true) {
            $due = microtime(true) + BATCH / $rate;
            for ($done = 0; $done < BATCH; $done++) {
                $this->{$kinds[mt_rand(0, 99)]}();
            }
            usleep((int) max(($due - microtime(true)) * 1e6, 0));
            $now = time();
            if ($now === $second) {
                continue;
            }
            $counts = $this->counts + ['operations' => array_sum($this->operations)];
            $new = ['time' => $second];
            foreach ($counts as $name => $count) {
                $new[$name] = $count - $before[$name];
            }
            $this->timeline[] = $new;
            [$before, $second] = [$counts, $now];
            clearstatcache();
            $ended = $until !== null && file_exists($until);
            $this->writeReport($report, $started, $ended);
            if ($ended) {
                return;
            }
        }
    }

    private function key(): string
    {
        return "$this->prefix:" . mt_rand(0, $this->keys - 1);
    }

    /** Do one command. Its error is counted, and its answer is then null. */
    private function do(string $name, mixed ...$arguments): mixed
    {
        $this->operations[$name] = ($this->operations[$name] ?? 0) + 1;
        $start = hrtime(true);
        $answer = $this->cache->$name(...$arguments);
        $took = intdiv(hrtime(true) - $start, 1000);
        $this->longest = max($this->longest, $took);
        $scale = 10 ** max(strlen((string) $took) - 2, 0);
        $digits = intdiv($took, $scale) * $scale;
        $this->latencies[$digits] = ($this->latencies[$digits] ?? 0) + 1;
        $code = $this->cache->getLastErrorCode() ?: $this->cache->getResultCode(); // the first for some nodes of many
        if (in_array($code, [Memcached::RES_SUCCESS, Memcached::RES_NOTFOUND], true)) {
            return $answer;
        }
        $this->counts['errors']++;
        if (count($this->told) < ERRORS_TOLD) {
            $message = $this->cache->getLastErrorMessage();
            $this->told[] = ['time' => microtime(true), 'operation' => $name, 'message' => "$code $message"];
        }
        return null;
    }

    private function write(string $key): void
    {
        $version = $this->sent[$key] = ($this->sent[$key] ?? 0) + 1;
        if ($this->do('set', $key, "$key $version " . str_repeat('.', PADDING), LIFETIME)) {
            $this->stored[$key] = $version;
        }
    }

    private function check(string $key, string $value): void
    {
        $this->counts['hits']++;
        [$name, $version] = explode(' ', $value, 3);
        if ($name !== $key || (int) $version > ($this->sent[$key] ?? 0)) {
            $this->counts['wrong']++;
        } elseif ((int) $version < ($this->stored[$key] ?? 0)) {
            $this->counts['stale']++;
        }
    }

    private function missed(string $key): void
    {
        $this->counts['misses']++;
        $this->write($key);
    }

    private function get(): void
    {
        $key = $this->key();
        $value = $this->do('get', $key);
        if (is_string($value)) {
            $this->check($key, $value);
        } elseif ($value === false) {
            $this->missed($key);
        }
    }

    private function getMulti(): void
    {
        for ($number = 0; $number < 10; $number++) {
            $keys[$this->key()] = true;
        }
        $found = $this->do('getMulti', array_keys($keys));
        if ($found === null) {
            return;
        }
        foreach ($found as $key => $value) {
            $this->check($key, $value);
        }
        foreach (array_diff_key($keys, $found) as $key => $true) {
            $this->missed($key);
        }
    }

    private function set(): void
    {
        $this->write($this->key());
    }

    private function delete(): void
    {
        $key = $this->key();
        if ($this->do('delete', $key) !== null) {
            $this->stored[$key] = $this->sent[$key] = ($this->sent[$key] ?? 0) + 1;
        }
    }

    private function increment(): void
    {
        $key = "$this->prefix:counter:" . mt_rand(0, 99);
        [$last, $lost] = $this->counters[$key] ?? [0, 0];
        $value = $this->do('increment', $key, 1);
        if ($value === null) {
            $this->counters[$key] = [$last, $lost + 1];
        } elseif ($value === false) { // it continues where it was, as an application would read it from its database
            $this->do('set', $key, (string) $last, LIFETIME);
        } else {
            $this->counts['wrong'] += (int) ($value > $last + $lost + 1);
            $this->counts['stale'] += (int) ($value <= $last);
            $this->counters[$key] = $value > $last ? [$value, 0] : [$last, $lost];
        }
    }

    private function writeReport(string $path, float $started, bool $ended): void
    {
        $now = microtime(true);
        $done = array_sum($this->operations);
        ['hits' => $hits, 'misses' => $misses] = $this->counts;
        $report = [
            'started' => $started,
            'written' => $now,
            'ended' => $ended,
            'operations' => $this->operations,
            'rate' => $done / ($now - $started),
            ...$this->counts,
            'messages' => $this->told,
            'hit_rate' => $hits / max($hits + $misses, 1),
            'latency_ms' => [
                'p50' => $this->percentile(0.5),
                'p99' => $this->percentile(0.99),
                'p999' => $this->percentile(0.999),
                'max' => $this->longest / 1000,
            ],
            'timeline' => $this->timeline,
        ];
        file_put_contents("$path.new", json_encode($report, JSON_THROW_ON_ERROR));
        rename("$path.new", $path);
    }

    private function percentile(float $share): float
    {
        ksort($this->latencies);
        $left = $share * array_sum($this->latencies);
        foreach ($this->latencies as $microseconds => $count) {
            $left -= $count;
            if ($left <= 0) {
                break;
            }
        }
        return $microseconds / 1000;
    }
}

/** Compare the ring with that in the vectors, and tell the result. */
function checkVectors(string $file): string
{
    $pools = json_decode(file_get_contents($file), true, flags: JSON_THROW_ON_ERROR)['pools'];
    foreach ($pools as ['weights' => $weights, 'owners' => $owners]) {
        $cache = new Memcached();
        $cache->setOption(Memcached::OPT_LIBKETAMA_COMPATIBLE, true);
        foreach ($weights as $node => $weight) {
            $colon = strrpos($node, ':');
            $cache->addServer(substr($node, 0, $colon), (int) substr($node, $colon + 1), $weight);
        }
        foreach ($owners as $number => $owner) {
            ['host' => $host, 'port' => $port] = $cache->getServerByKey("key:$number");
            if ("$host:$port" !== array_keys($weights)[$owner]) {
                fwrite(STDERR, 'the ring of ' . implode(', ', array_keys($weights)) . " differs\n");
                exit(1);
            }
        }
    }
    return count($pools) . ' pools agree';
}

function connect(array $options): PoolClient|Memcached
{
    if (isset($options['direct'])) {
        require __DIR__ . '/PoolClient.php';
        return new PoolClient($options['direct']);
    }
    [$host, $port] = explode(':', $options['proxy']);
    $cache = new Memcached();
    $cache->setOption(Memcached::OPT_TCP_NODELAY, true);
    $cache->addServer($host, (int) $port);
    return $cache;
}

$options = getopt('', ['direct:', 'proxy:', 'check-vectors:', 'keys:', 'rate:', 'until-file:', 'report:']);
if (isset($options['check-vectors'])) {
    echo checkVectors($options['check-vectors']), "\n";
} elseif (isset($options['direct']) || isset($options['proxy'])) {
    $load = new Load(connect($options), (int) ($options['keys'] ?? 20000));
    $load->run((float) ($options['rate'] ?? INF), $options['until-file'] ?? null, $options['report'] ?? 'report.json');
} else {
    fwrite(STDERR, "give --direct POOL, --proxy HOST:PORT or --check-vectors FILE\n");
    exit(2);
}

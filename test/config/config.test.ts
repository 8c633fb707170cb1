import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { loadConfig, parseConfig, type Config } from '../../src/config/config.ts';
import { watchConfig } from '../../src/config/watch.ts';
import { UsageError, type CdpError } from '../../src/errors.ts';

describe('the configuration that is shipped', () => {
  it('shows every key with its default', async () => {
    const shipped = await readFile('packaging/virt-cdp.toml', 'utf8');
    const uncommented = shipped.replace(/^# (?=[a-z_.]+ = )/gm, '');
    const installed = '/etc/virt-cdp/virt-cdp.toml';
    const shown = parseConfig(uncommented, installed);
    assert.equal(shown.libvirt.socket, '/run/libvirt/libvirt-sock');
    assert.deepEqual({ ...shown, libvirt: null }, { ...parseConfig('', installed), libvirt: null });
    assert.equal((uncommented.match(/^[a-z_.]+ = /gm) ?? []).length, 14);
  });

  it('has examples of those that have no default', async () => {
    const shipped = await readFile('packaging/virt-cdp.toml', 'utf8');
    const { metrics, notify, socketGroup } = parseConfig(shipped.replace(/^# {3}(?=[a-z_.]+ = )/gm, ''), '/etc/x.toml');
    assert.deepEqual(metrics.listen, { host: '127.0.0.1', port: 9768 });
    assert.equal(socketGroup, 'virt-cdp');
    assert.ok(notify.exec !== null && notify.webhook !== null);
  });
});

describe('the configuration', () => {
  let folder: string;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-config-'));
  });
  after(() => rm(folder, { recursive: true }));

  it('has defaults', () => {
    const modular = existsSync('/run/libvirt/virtqemud-sock');
    assert.deepEqual(parseConfig('', '/etc/x.toml'), {
      libvirt: { socket: modular ? '/run/libvirt/virtqemud-sock' : '/run/libvirt/libvirt-sock' },
      store: '/var/lib/virt-cdp',
      policyDir: '/etc/policy.d',
      socket: '/run/virt-cdp/virt-cdp.sock',
      socketGroup: null,
      engine: 'auto',
      log: { level: 'info' },
      mirror: { timeoutMs: 5000 },
      nbd: { tlsCertDir: null },
      hook: { deadlineMs: 1000 },
      resync: { maxBytesPerS: 0 },
      onHang: 'wait',
      start: { afterDamage: 'mirror' },
      rebuild: { auto: false },
      metrics: { listen: null },
      notify: { exec: null, webhook: null, deadlineMs: 10_000 },
      verify: { scratch: '/var/tmp' },
    } satisfies Config);
  });

  it('takes every key', async () => {
    const file = join(folder, 'full.toml');
    await writeFile(
      file,
      `on_hang = "restart"
       store = "/srv/cdp"
       policy_dir = "/srv/policies"
       socket = "/run/x.sock"
       socket_group = "cdp"
       engine = "mirror"
       [libvirt]
       socket = "/tmp/libvirt-sock"
       [log]
       level = "debug"
       [mirror]
       timeout_ms = 2500
       [hook]
       deadline_ms = 500
       [resync]
       max_bytes_per_s = 100_000_000
       [start]
       after_damage = "refuse"
       [rebuild]
       auto = true
       [metrics]
       listen = "[::1]:9768"
       [notify]
       exec = ["/bin/page", "me"]
       webhook = "http://alerts/x"
       deadline_ms = 100
       [verify]
       scratch = "/srv/scratch"`,
    );
    assert.deepEqual(await loadConfig(file), {
      libvirt: { socket: '/tmp/libvirt-sock' },
      store: '/srv/cdp',
      policyDir: '/srv/policies',
      socket: '/run/x.sock',
      socketGroup: 'cdp',
      engine: 'mirror',
      log: { level: 'debug' },
      mirror: { timeoutMs: 2500 },
      nbd: { tlsCertDir: null },
      hook: { deadlineMs: 500 },
      resync: { maxBytesPerS: 100_000_000 },
      onHang: 'restart',
      start: { afterDamage: 'refuse' },
      rebuild: { auto: true },
      metrics: { listen: { host: '::1', port: 9768 } },
      notify: { exec: ['/bin/page', 'me'], webhook: 'http://alerts/x', deadlineMs: 100 },
      verify: { scratch: '/srv/scratch' },
    });
  });

  const broken: [toml: string, says: RegExp][] = [
    ['colour = "red"', /Unrecognized key: "colour"/],
    ['[mirror]\ntimeout = 5', /Unrecognized key: "timeout"[^]*mirror/],
    ['[mirror]\ntimeout_ms = "5s"', /expected number[^]*mirror\.timeout_ms/],
    ['[mirror]\ntimeout_ms = 0', /mirror\.timeout_ms/],
    ['[mirror]\ntimeout_ms = 1.5', /mirror\.timeout_ms/],
    ['[hook]\ndeadline_ms = 1001', /<=1000[^]*hook\.deadline_ms/],
    ['[resync]\nmax_bytes_per_s = -1', /resync\.max_bytes_per_s/],
    ['start.after_damage = "yes"', /start\.after_damage/],
    ['[log]\nlevel = "loud"', /log\.level/],
    ['store = "var/lib"', /absolute path[^]*store/],
    ['socket = ""', /absolute path[^]*socket/],
    ['libvirt = 1', /libvirt/],
    ['socket_group = "a b"', /group's name[^]*socket_group/],
    ['metrics.listen = "9768"', /HOST:PORT[^]*metrics\.listen/],
    ['metrics.listen = "a:99999"', /65535[^]*metrics\.listen/],
    ['notify.exec = []', /notify\.exec/],
    ['notify.exec = ["page-me"]', /absolute path[^]*notify\.exec/],
    ['notify.webhook = "file:///etc/passwd"', /notify\.webhook/],
    ['store = ', /invalid value[^]*1: {2}store/],
    ['__proto__ = 1', /__proto__/],
    ['[rebuild]\nauto = 99999999999999999999', /x is invalid/],
  ];
  for (const [toml, says] of broken) {
    it(`names what is wrong with ${JSON.stringify(toml)}`, () => {
      assert.throws(
        () => parseConfig(toml, 'x'),
        (error) => error instanceof UsageError && error.code === 'config-invalid' && says.test(error.message),
      );
    });
  }

  it('must exist if it is named', async () => {
    await assert.rejects(loadConfig(join(folder, 'none.toml')), { code: 'config-missing' });
    await assert.rejects(loadConfig(folder), { code: 'config-unreadable' });
  });

  it('throws nothing but UsageError, whatever it reads', function () {
    this.timeout(60_000);
    const key = fc.constantFrom(
      'store',
      'socket',
      'log.level',
      'mirror.timeout_ms',
      '[hook]',
      'toString',
      '"__proto__".x',
    );
    const value = fc.oneof(
      fc.string(),
      fc.integer().map(String),
      fc.constantFrom('{}', '[]', 'true', '1979-05-27', 'nan', '""'),
    );
    const line = fc.tuple(key, value).map(([name, is]) => `${name} = ${is}`);
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string({ unit: 'binary' }),
          fc.array(line).map((all) => all.join('\n')),
        ),
        (toml) => {
          try {
            parseConfig(toml, 'x');
          } catch (error) {
            assert.ok(error instanceof UsageError, String(error));
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  describe('watchConfig', () => {
    const told: (Config | CdpError)[] = [];
    let stop: () => Promise<void>;
    let file: string;

    beforeEach(async () => {
      told.length = 0;
      file = join(folder, 'watched.toml');
      await writeFile(file, '');
      stop = await watchConfig(file, {
        onChange: (config) => told.push(config),
        onBroken: (error) => told.push(error),
      });
    });
    afterEach(() => stop());

    /** Until the last thing told is that; a slow write may be told of in two steps. */
    async function until(store: string): Promise<void> {
      const last = (): string | undefined => {
        const what = told.at(-1);
        return what === undefined || 'store' in what ? what?.store : what.code;
      };
      while (last() !== store) await sleep(10);
    }

    it('tells of a written file, of a broken one, and of one put in its place', async () => {
      await writeFile(file, 'store = "/a"');
      await until('/a');
      await writeFile(file, 'store = ');
      await until('config-invalid');
      await writeFile(`${file}.new`, 'store = "/b"');
      await rename(`${file}.new`, file);
      await until('/b');
    });

    it('tells of a removed file as a broken one, and of its return', async () => {
      await rm(file);
      await until('config-missing');
      await writeFile(file, 'store = "/c"');
      await until('/c');
    });

    it('tells nothing of other files, nor after its end', async () => {
      await writeFile(join(folder, 'other.toml'), 'x');
      await stop();
      await writeFile(file, 'store = "/d"');
      await sleep(300);
      assert.deepEqual(told, []);
    });
  });
});

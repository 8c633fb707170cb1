import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { build } from 'esbuild';
import { installHookFile, renderHook } from '../../src/config/hook-file.ts';
import { domainRecordSchema, newDiskRecord, type DomainRecord } from '../../src/protection/record.ts';
import { readNames, writeNames } from '../../src/protection/starts/name-table.ts';
import { writeStaleSources } from '../../src/protection/starts/stale-sources.ts';
import { RecordStore } from '../../src/store/record-store.ts';
import type { Image } from '../../src/domain/image.ts';
import { FakeAgent } from '../control/fake-agent.ts';

const uuid = '11111111-2222-3333-4444-555555555555';
function image(path: string): Image {
  return { source: { kind: 'file', path }, format: 'raw' };
}

const declaration = '<metadata><cdp:protection xmlns:cdp="https://virt-cdp.org/xmlns/domain/1"/></metadata>';

function domainXml(inner = ''): string {
  return `<domain type='kvm'>\n  <name>web1</name>\n  <uuid>${uuid}</uuid>\n  ${inner}\n  <title>ü</title>\n</domain>\n\n`;
}

describe("libvirt's hook", () => {
  let folder: string;
  let program: string;
  let agent: FakeAgent;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "virt-cdp hook's "));
    program = join(folder, 'virt-cdp-hook.js');
    await build({ entryPoints: ['src/hook/main.ts'], outfile: program, bundle: true, platform: 'node', format: 'cjs' });
    await mkdir(join(folder, 'domains'));
  });
  after(() => rm(folder, { recursive: true }));
  beforeEach(async () => (agent = await new FakeAgent().start()));
  afterEach(() => agent.stop());

  /** Runs hooks/qemu as libvirt does: in /, with its few variables. */
  async function hook(
    operation: string,
    xml: string,
    changes: { node?: string; socket?: string; store?: string; deadlineMs?: number } = {},
  ) {
    const text = renderHook(await readFile('hooks/qemu', 'utf8'), changes.node ?? process.execPath, program, {
      socket: changes.socket ?? agent.socketPath,
      store: changes.store ?? folder,
      hook: { deadlineMs: changes.deadlineMs ?? 5000 },
    });
    const script = join(folder, 'qemu');
    await writeFile(script, text.replace(/^store_patience_s=\d+$/m, 'store_patience_s=1'));
    const { PATH = '' } = process.env;
    return run('sh', [script, 'web1', operation, 'begin', '-'], xml, { LC_ALL: 'C', PATH, HOME: '/', USER: 'root' });
  }

  const missingNode = { node: '/nonexistent/node' };
  const silence = { code: 0, stdout: '', stderr: '' };

  for (const operation of ['prepare', 'restore', 'migrate']) {
    it(`lets ${operation} of an unprotected domain go on without node`, async () => {
      assert.deepEqual(await hook(operation, domainXml(), missingNode), silence);
    });

    it(`asks the agent at ${operation} of a protected domain, and prints nothing`, async () => {
      assert.deepEqual(await hook(operation, domainXml(declaration)), silence);
      assert.deepEqual(agent.hookCalls, [
        { operation, subOperation: 'begin', extra: '-', domainXml: domainXml(declaration) },
      ]);
    });
  }

  describe('has no say, whatever is broken, in', () => {
    const brokenThings: Record<string, { xml?: string; node?: string; store?: string; socket?: string }> = {
      'no node': { node: '/nonexistent/node' },
      'a store that is no folder': { store: '/dev/null' },
      'no store': { store: '/nonexistent/store' },
      'no agent': { socket: '/nonexistent/sock' },
      garbage: { xml: '\0\x01<<&&\\c%s$(exit 9)`exit 9`\n' },
      'no XML': { xml: '' },
      'a huge XML': { xml: domainXml(`${declaration}${"<disk type='file'/>\n".repeat(600_000)}`) },
    };

    for (const operation of ['start', 'started', 'stopped', 'release', 'reconnect', 'attach']) {
      it(operation, async () => {
        await writeFile(join(folder, 'domains', `${uuid}.json`), '{"policy": "strict"');
        for (const [what, { xml = domainXml(declaration), ...changes }] of Object.entries(brokenThings))
          assert.deepEqual(await hook(operation, xml, changes), silence, what);
        await rm(join(folder, 'domains', `${uuid}.json`));
        assert.deepEqual(agent.hookCalls, []);
      });
    }
  });

  it('says so when node is missing for a protected domain, and lets it go on', async () => {
    const ended = await hook('prepare', domainXml(declaration), missingNode);
    assert.equal(ended.code, 0);
    assert.match(
      ended.stderr,
      /\/nonexistent\/node .* can't be run .* prepare of web1 is judged by the list of stale copies/,
    );
  });

  it('knows a domain by its record, even without a declaration', async () => {
    const record = join(folder, 'domains', `${uuid}.json`);
    await writeFile(record, '{}');
    assert.deepEqual(await hook('prepare', domainXml()), silence);
    await rm(record);
    assert.equal(agent.hookCalls.length, 1);
  });

  it("refuses with the agent's message", async () => {
    agent.onHook = () => ({
      refuse: { message: 'the primary of web1 vda is stale; run virt-cdp start web1' },
      xml: null,
    });
    const ended = await hook('prepare', domainXml(declaration));
    assert.deepEqual(ended, {
      code: 1,
      stdout: '',
      stderr: 'virt-cdp: the primary of web1 vda is stale; run virt-cdp start web1\n',
    });
  });

  it('takes a large XML, to the last byte', async () => {
    const xml = domainXml(`${declaration}${"<disk type='file'/>\n".repeat(20_000)}`);
    assert.deepEqual(await hook('prepare', xml), silence);
    assert.equal(agent.hookCalls[0]?.domainXml, xml);
  });

  it('takes what is no XML for a stranger', async () => {
    for (const xml of ['', 'uuid', '</uuid><uuid>', '\\c%s$(exit 9)`exit 9`\n']) {
      assert.deepEqual(await hook('prepare', xml, missingNode), silence);
    }
  });

  it('lets a domain go on when the agent is down', async () => {
    const ended = await hook('prepare', domainXml(declaration), { socket: '/nonexistent/sock' });
    assert.equal(ended.code, 0);
    assert.match(ended.stderr, /^virt-cdp: the agent does not answer .*: prepare of web1 goes on by its records/);
  });

  it('lets a domain go on when the agent fails', async () => {
    agent.onHook = () => {
      throw new Error('a bug');
    };
    const ended = await hook('prepare', domainXml(declaration));
    assert.equal(ended.code, 0);
    assert.match(ended.stderr, /goes on by its records/);
  });

  describe('with records, and no agent', () => {
    const down = { socket: '/nonexistent/sock' };
    const stranger = '99999999-2222-3333-4444-555555555555';
    const disk = (path: string): string =>
      `<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${path}'/><target dev='vda' bus='virtio'/></disk></devices>`;

    afterEach(async () => {
      for (const name of ['domains', 'starts', 'stale-sources', 'real-names.json'])
        await rm(join(folder, name), { recursive: true, force: true });
      await mkdir(join(folder, 'domains'));
    });

    function web1(change: (record: DomainRecord) => DomainRecord): DomainRecord {
      return change({
        version: 1,
        uuid,
        name: 'web1',
        policy: 'available',
        lastStart: null,
        restoreOwed: null,
        disks: [newDiskRecord({ dev: 'vda', mirror: image('/m.img'), rebuild: null }, image('/p.img'), false)],
      });
    }

    async function record(change: (record: DomainRecord) => DomainRecord = (same) => same): Promise<void> {
      const store = await RecordStore.open(folder, domainRecordSchema);
      await store.save(uuid, web1(change));
      await writeStaleSources(folder, [web1(change)]);
    }

    const failedOver = (domain: DomainRecord): DomainRecord => ({
      ...domain,
      disks: domain.disks.map((one) => ({
        ...one,
        primary: { ...one.primary, current: false },
        mirror: { ...one.mirror, current: true },
      })),
    });

    it('refuses to start from a stale copy, and says which is current and what to type', async () => {
      await record(failedOver);
      const ended = await hook('prepare', domainXml(disk('/p.img')), down);
      assert.equal(ended.code, 1);
      assert.match(
        ended.stderr,
        /web1 can't start: its disk vda, '\/p.img', is a stale copy .* current one is '\/m.img'. Type: virt-cdp start web1/,
      );
    });

    it('refuses it to a domain of another UUID that knows nothing of virt-cdp', async () => {
      await record(failedOver);
      const ended = await hook('prepare', domainXml(disk('/p.img')).replace(uuid, stranger), down);
      assert.equal(ended.code, 1);
      assert.match(ended.stderr, /stale copy of web1's vda/);
    });

    it('lets a stranger on other storage go on without node', async () => {
      await record(failedOver);
      assert.deepEqual(await hook('prepare', domainXml(disk('/q.img')).replace(uuid, stranger), missingNode), silence);
    });

    it('knows it by any way of writing its path, and by the names that the agent has learnt', async () => {
      await record(failedOver);
      await writeNames(folder, new Map([['/links/web1', '/p.img']]));
      await writeStaleSources(folder, [web1(failedOver)], await readNames(folder));
      for (const path of ['//p.img', '/./p.img', '/a/../p.img', '/links/web1', '/links//web1']) {
        const ended = await hook('prepare', domainXml(disk(path)).replace(uuid, stranger), down);
        assert.equal(ended.code, 1, path);
        assert.match(ended.stderr, /stale copy of web1's vda/);
      }
    });

    it('refuses a volume that bears the name of a stale copy', async () => {
      await record(failedOver);
      const volume = disk('')
        .replace("type='file'", "type='volume'")
        .replace("file=''", "pool='default' volume='p.img'");
      const ended = await hook('prepare', domainXml(volume).replace(uuid, stranger), down);
      assert.equal(ended.code, 1);
      assert.match(ended.stderr, /the volume 'p.img' of pool 'default', bears the name of '\/p.img', a stale copy/);
    });

    it('refuses a domain whose own record can not be read, and names the file; others go on', async () => {
      await record(failedOver);
      const file = join(folder, 'domains', `${uuid}.json`);
      await writeFile(file, '{');
      const ended = await hook('prepare', domainXml(), down);
      assert.equal(ended.code, 1);
      assert.match(ended.stderr, /web1 can't start: which of its copies is current is not known/);
      assert.ok(ended.stderr.includes(file), ended.stderr);
      const other = domainXml(declaration).replace(uuid, stranger);
      assert.equal((await hook('prepare', other, down)).code, 0);
      const thief = domainXml(disk('/p.img')).replace(uuid, stranger);
      const refused = await hook('prepare', thief, down);
      assert.equal(refused.code, 1);
      assert.match(refused.stderr, /'\/p.img' is a stale copy, and .* did not come to a decision/);
    });

    describe('and a node that can not judge', () => {
      const crashes: Record<string, string> = {
        'is missing': '',
        'fails with a code that means something to others': '#!/bin/sh\ncat >/dev/null\nexit 1\n',
        'is killed': '#!/bin/sh\nkill -KILL $$\n',
        'reads nothing': '#!/bin/sh\nexit 3\n',
      };
      for (const [what, text] of Object.entries(crashes)) {
        it(`because it ${what}: goes by the list of stale copies, and by the policy`, async () => {
          const node = join(folder, 'node');
          if (text !== '') await writeFile(node, text, { mode: 0o755 });
          await record(failedOver);
          const thief = domainXml(disk('/p.img')).replace(uuid, stranger);
          for (const xml of [domainXml(disk('/p.img')), thief]) {
            const ended = await hook('prepare', xml, { node });
            assert.equal(ended.code, 1);
            assert.match(ended.stderr, /web1 can't start: '\/p.img' is a stale copy/);
          }
          assert.equal((await hook('prepare', domainXml(disk('/m.img')), { node })).code, 0);
          assert.match(await readFile(join(folder, 'starts', uuid), 'utf8'), /^[0-9a-f-]{36}\n$/);
          await record((domain) => ({ ...domain, policy: 'strict' }));
          const strict = await hook('prepare', domainXml(disk('/p.img')), { node });
          assert.equal(strict.code, 1);
          assert.match(strict.stderr, /policy is strict/);
          await rm(node, { force: true });
        });
      }
    });

    it('leaves a mark of each start that goes on, agent up or down, and of no other', async () => {
      const mark = join(folder, 'starts', uuid);
      await record();
      await hook('prepare', domainXml(disk('/p.img')));
      const first = await readFile(mark, 'utf8');
      await hook('prepare', domainXml(disk('/p.img')), down);
      const second = await readFile(mark, 'utf8');
      assert.notEqual(first, second);
      await hook('restore', domainXml(disk('/p.img')));
      agent.onHook = () => ({ refuse: { message: 'no' }, xml: null });
      await hook('prepare', domainXml(disk('/p.img')));
      assert.equal(await readFile(mark, 'utf8'), second);
      await hook('prepare', domainXml(disk('/p.img')).replace(uuid, stranger), down);
      await hook('prepare', domainXml(declaration).replace(uuid, stranger), down);
      assert.deepEqual(await readdir(join(folder, 'starts')), [uuid]);
    });

    it('refuses a start that it can not mark', async () => {
      await record();
      await writeFile(join(folder, 'starts'), 'no folder');
      const ended = await hook('prepare', domainXml(disk('/p.img')));
      assert.equal(ended.code, 1);
      assert.match(ended.stderr, /web1 can't start: that it starts can't be noted/);
    });

    it('marks each start, and takes the mirror for stale after a start that the record does not know', async () => {
      const both = (domain: DomainRecord): DomainRecord => ({
        ...domain,
        disks: domain.disks.map((one) => ({ ...one, mirror: { ...one.mirror, current: true } })),
      });
      await record(both);
      const early = await hook('prepare', domainXml(disk('/m.img')), down);
      assert.equal(early.code, 1);
      assert.match(early.stderr, /its definition names the mirror of vda, and the primary is current too/);
      assert.equal((await hook('prepare', domainXml(disk('/p.img')), down)).code, 0);
      assert.match(await readFile(join(folder, 'starts', uuid), 'utf8'), /^[0-9a-f-]{36}\n$/);
      const again = await hook('prepare', domainXml(disk('/m.img')), down);
      assert.equal(again.code, 1);
      assert.match(again.stderr, /'\/m.img', is a stale copy/);
    });

    it('refuses a strict domain whose agent is down', async () => {
      await record((domain) => ({ ...domain, policy: 'strict' }));
      const ended = await hook('prepare', domainXml(disk('/p.img')), down);
      assert.equal(ended.code, 1);
      assert.match(ended.stderr, /policy is strict, and the agent does not answer. Type: systemctl start virt-cdpd/);
    });

    for (const operation of ['restore', 'migrate']) {
      it(`puts the current copy into the XML at ${operation}, and changes nothing else`, async () => {
        await record(failedOver);
        const before = domainXml(disk('/p.img'));
        const ended = await hook(operation, before, down);
        assert.deepEqual([ended.code, ended.stdout], [0, before.replace('/p.img', '/m.img')]);
      });
    }
  });

  describe('with a store that hangs', () => {
    const store = (): string => join(folder, 'hung');

    /** Whoever opens the record waits for ever. */
    beforeEach(async () => {
      await mkdir(join(store(), 'domains'), { recursive: true });
      const made = await run('mkfifo', [join(store(), 'domains', `${uuid}.json`)], '', process.env as never);
      assert.equal(made.code, 0, made.stderr);
    });
    afterEach(() => rm(store(), { recursive: true }));

    const hang = (operation: string, xml: string) =>
      hook(operation, xml, { store: store(), socket: join(folder, 'nobody.sock'), deadlineMs: 300 });

    it('refuses the start of a protected domain, since it can not be noted, and holds libvirt no longer', async () => {
      const stopPolicy = domainXml(
        "<devices><disk><driver error_policy='stop' rerror_policy='stop'/></disk></devices>",
      );
      for (const xml of [domainXml(declaration), stopPolicy]) {
        const ended = await hang('prepare', xml);
        assert.equal(ended.code, 1);
        assert.match(ended.stderr, /web1 can't start: the store .*hung has not answered within 1 s/);
      }
    });

    it('lets go on what it can not know to be protected, and a restore, which has a start of its own', async () => {
      for (const [operation, xml] of [
        ['prepare', domainXml()],
        ['restore', domainXml(declaration)],
      ] as const) {
        const ended = await hang(operation, xml);
        assert.deepEqual([ended.code, ended.stdout], [0, '']);
        assert.match(ended.stderr, /goes on unjudged/);
      }
    });

    it('has none of it with the agent up, as long as nothing is to be noted', async () => {
      const ended = await hook('restore', domainXml(declaration), { store: store(), deadlineMs: 1000 });
      assert.deepEqual(ended, silence);
    });
  });

  it('ends by its deadline when the agent never answers: an available domain goes on, a strict one is refused', async () => {
    const socket = join(folder, 'silent.sock');
    const silent = createServer((connection) => void connection.on('error', () => undefined));
    await new Promise<void>((done) => silent.listen(socket, done));
    const store = await RecordStore.open(folder, domainRecordSchema);
    const disks = [newDiskRecord({ dev: 'vda', mirror: image('/m.img'), rebuild: null }, image('/p.img'), false)];
    try {
      for (const policy of ['available', 'strict'] as const) {
        const known = { version: 1 as const, uuid, name: 'web1', policy, lastStart: null, disks, restoreOwed: null };
        await store.save(uuid, known);
        const ended = await hook('prepare', domainXml(declaration), { socket, deadlineMs: 1000 });
        assert.equal(ended.code, policy === 'strict' ? 1 : 0, ended.stderr);
        assert.match(ended.stderr, policy === 'strict' ? /policy is strict/ : /goes on by its records|is judged by/);
      }
    } finally {
      silent.close();
      await store.remove(uuid);
      await rm(join(folder, 'starts'), { recursive: true, force: true });
    }
  });
});

describe('install-hook', () => {
  let folder: string;
  let program: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-install-'));
    await mkdir(join(folder, 'dist'));
    await mkdir(join(folder, 'hooks'));
    program = join(folder, 'dist', 'virt-cdp.js');
    await writeFile(join(folder, 'hooks', 'qemu'), await readFile('hooks/qemu'));
    await writeFile(join(folder, 'dist', 'virt-cdp-hook.js'), '');
    await writeFile(program, '');
    await writeFile(join(folder, 'virt-cdp.toml'), `store = "${folder}/it's here"\n[hook]\ndeadline_ms = 700\n`);
  });
  afterEach(() => rm(folder, { recursive: true }));

  const install = () => installHookFile(join(folder, 'libvirt-hooks'), join(folder, 'virt-cdp.toml'), program);

  it('writes an executable file that points at this installation and configuration', async () => {
    const { path, first } = await install();
    assert.deepEqual([path, first], [join(folder, 'libvirt-hooks', 'qemu.d', '50-virt-cdp'), true]);
    assert.equal((await stat(path)).mode & 0o777, 0o755);
    const text = await readFile(path, 'utf8');
    assert(text.includes(`node='${process.execPath}'`));
    assert(text.includes(`program='${resolve(folder, 'dist/virt-cdp-hook.js')}'`));
    assert(text.includes(`store='${folder}/it'\\''s here'`));
    assert(text.includes("deadline_ms='700'"));
    assert.equal((await run(path, ['web1', 'started', 'begin', '-'], '', {})).code, 0);
  });

  it('knows whether libvirt has had a hook before', async () => {
    assert.equal((await install()).first, true);
    assert.equal((await install()).first, false);
    await rm(join(folder, 'libvirt-hooks', 'qemu.d'), { recursive: true });
    await writeFile(join(folder, 'libvirt-hooks', 'qemu'), '#!/bin/sh\n');
    assert.equal((await install()).first, true);
    await rm(join(folder, 'libvirt-hooks', 'qemu.d'), { recursive: true });
    await chmod(join(folder, 'libvirt-hooks', 'qemu'), 0o755);
    assert.equal((await install()).first, false);
  });

  it('refuses where there is no libvirt, or nothing was built', async () => {
    await assert.rejects(installHookFile(join(folder, 'none', 'hooks'), undefined, program), { code: 'no-libvirt' });
    await rm(join(folder, 'dist', 'virt-cdp-hook.js'));
    await assert.rejects(install(), { code: 'not-built' });
  });
});

function run(file: string, args: string[], stdin: string, env: Record<string, string>) {
  return new Promise<{ code: number | null; stdout: string; stderr: string }>((resolveEnd, reject) => {
    const child = spawn(file, args, { cwd: '/', env, stdio: 'pipe' });
    const ended = { stdout: '', stderr: '' };
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => (ended.stdout += chunk));
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => (ended.stderr += chunk));
    // A hook that has no use for the XML does not read it.
    child.stdin.on('error', () => undefined).end(stdin);
    child.on('error', reject).on('close', (code) => resolveEnd({ code, ...ended }));
  });
}

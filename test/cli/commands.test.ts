import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { domainStatusesSchema, protectionEventSchema } from '../../src/control/schema.ts';
import { CdpError, RefusedError, UsageError } from '../../src/errors.ts';
import type { DiskStatus } from '../../src/protection/model.ts';
import { FakeAgent, diskWith, domainWith, noon } from '../control/fake-agent.ts';
import { type Ended, errorCode, runHere, runProgram } from './run-cli.ts';

const staleMirror = { source: 'nbd://storage/web1', current: false, reachable: false, consistentAsOf: noon };
const mixedMirror = { ...staleMirror, consistentAsOf: null, mixture: true } as const;
const exposed: Partial<DiskStatus> = {
  state: 'exposed',
  reason: 'the mirror does not answer',
  mirror: staleMirror,
  runningOn: 'primary',
  exposedSince: noon,
  exposedBytes: 1_288_490_189,
};

describe('virt-cdp', () => {
  let agent: FakeAgent;
  beforeEach(async () => {
    agent = await new FakeAgent().start();
    agent.statuses.set('web1', domainWith());
  });
  afterEach(() => agent.stop());

  const run = (...argv: string[]): Promise<Ended> => runHere(['--socket', agent.socketPath, ...argv]);

  describe('exit codes', () => {
    it('0 when it is done', async () => {
      const { code, stdout } = await run('hold', 'web1');
      assert.deepEqual([code, stdout], [0, 'hold of web1 accepted\n']);
    });

    for (const [code, type, why] of [
      [1, CdpError, 'mirror-missing'],
      [1, UsageError, 'already-protected'],
      [1, UsageError, 'not-failed-over'],
      [1, UsageError, 'disk-not-found'],
      [2, UsageError, 'image-uri-invalid'],
      [2, UsageError, 'mirror-ambiguous'],
      [2, UsageError, 'target-missing'],
      [4, RefusedError, 'failed-over'],
    ] as const) {
      it(`${code} on a ${type.name} ${why}, told in text or JSON`, async () => {
        agent.onAct = () => Promise.reject(new type({ code: why, message: 'it failed', hint: 'do this' }));
        assert.deepEqual(await run('unprotect', 'web1'), {
          code,
          stdout: '',
          stderr: 'error: it failed\nhint: do this\n',
        });
        const json = await run('unprotect', 'web1', '--json');
        assert.equal(json.code, code);
        assert.deepEqual(JSON.parse(json.stdout), { error: { code: why, message: 'it failed', hint: 'do this' } });
      });
    }

    it('2 on a wrong command line, told in text or JSON', async () => {
      for (const argv of [
        ['nonsense'],
        ['hold'],
        ['status', 'a', 'b'],
        ['hold', 'web1', '--x'],
        ['events', '--since', 'x'],
        ['protect', 'web1', '--disk', 'vda'],
      ]) {
        const { code, stdout, stderr } = await run(...argv);
        assert.equal(code, 2, argv.join(' '));
        assert.equal(stdout, '');
        assert.match(stderr, /^error: /);
        assert.equal(errorCode(await run(...argv, '--json')), 'usage');
      }
      assert.equal((await run()).code, 2);
      assert.equal((await run('hold', '')).code, 2);
    });

    it('3 when nobody answers, as a program too', async () => {
      const none = { VIRT_CDP_SOCKET: '/nonexistent/virt-cdp.sock' };
      const ended = await runProgram(['list'], none);
      assert.equal(ended.code, 3);
      assert.match(
        ended.stderr,
        /^error: cannot reach the agent.*\nhint: start it: systemctl start virt-cdpd, or virt-cdpd --config FILE\n$/,
      );
      assert.equal(errorCode(await runHere(['list', '--json'], { env: none })), 'agent-unreachable');
    });

    it('0 for help and version', async () => {
      assert.match((await run('--help')).stdout, /install-hook/);
      const protect = (await run('protect', '--help')).stdout;
      assert.match(protect, /--overwrite-mirror/);
      assert.match(protect, /nbd:.*iscsi:.*rbd:/s);
      const version = await run('--version');
      assert.deepEqual([version.code, /^\d+\.\d+\.\d+\n$/.test(version.stdout)], [0, true]);
    });
  });

  describe('protect --stop-policy-by save-restore', () => {
    const argv = ['protect', 'web1', '--disk', 'vda', '--stop-policy-by', 'save-restore'];
    const agreed = { disk: 'vda', stopPolicyBy: 'save-restore', pauseAgreed: true };

    beforeEach(() => {
      const accept = agent.onAct;
      agent.onAct = (domain, action) => {
        const { args } = agent.acts.at(-1) ?? {};
        if ('pauseAgreed' in (args as object)) return accept(domain, action);
        return Promise.reject(new RefusedError({ code: 'pause-not-agreed', message: 'it stands still for about 7 s' }));
      };
    });

    it('tells the pause, and does it, when there is no terminal', async () => {
      const { code, stdout, stderr } = await run(...argv);
      assert.deepEqual([code, stderr], [0, 'it stands still for about 7 s\n']);
      assert.match(stdout, /protect of web1 accepted/);
      assert.deepEqual(agent.acts.at(-1)?.args, agreed);
    });

    it('asks at a terminal, after telling', async () => {
      const asked: string[] = [];
      const answering = (answer: boolean) => (question: string) => Promise.resolve((asked.push(question), answer));
      const refused = await runHere(['--socket', agent.socketPath, ...argv], { ask: answering(false) });
      assert.equal(refused.code, 1);
      assert.match(refused.stderr, /about 7 s\nerror: nothing was changed/);
      assert.equal(agent.acts.length, 1);
      const done = await runHere(['--socket', agent.socketPath, ...argv], { ask: answering(true) });
      assert.equal(done.code, 0);
      assert.deepEqual(agent.acts.at(-1)?.args, agreed);
      assert.deepEqual(asked, ['Save and restore it now?', 'Save and restore it now?']);
    });

    it('asks nothing where no pause is needed', async () => {
      agent.onAct = () => ({ message: 'done', warnings: [], status: domainWith() });
      const ask = (): Promise<boolean> => Promise.reject(new Error('asked'));
      assert.equal((await runHere(['--socket', agent.socketPath, ...argv], { ask })).code, 0);
    });
  });

  describe('list', () => {
    it('shows a table', async () => {
      agent.statuses.set('db', domainWith({ domain: 'db', disks: [diskWith(exposed)] }));
      agent.undeclared.push(domainWith({ domain: 'plain', running: false, state: 'stopped', disks: [] }));
      const rows = (await run('list', '--all')).stdout
        .trim()
        .split('\n')
        .map((line) => line.split(/ {2,}/));
      assert.deepEqual(rows[0], ['NAME', 'RUN', 'PROTECTION', 'CURRENT', 'SINCE']);
      assert.deepEqual(rows[1]?.slice(0, 4), ['web1', 'running', 'protected', 'both']);
      assert.deepEqual(rows[2]?.slice(0, 4), ['db', 'running', 'exposed', 'primary']);
      assert.deepEqual(rows[3], ['plain', 'stopped', '-', '-', '-']);
    });

    it('--json is the array of the interface', async () => {
      const { stdout } = await run('list', '--json');
      assert.deepEqual(domainStatusesSchema.parse(JSON.parse(stdout)), [domainWith()]);
    });
  });

  describe('status', () => {
    it('says what is wrong, since when, and where everything is', async () => {
      agent.statuses.set('web1', domainWith({ disks: [diskWith(exposed)] }));
      const { stdout } = await run('status', 'web1');
      assert.match(stdout, /^web1 {2}exposed {2}\(running, policy available\)\n/);
      assert.match(stdout, /vda {2}exposed since 2026-\d\d-\d\d \d\d:00:00, for \d+ d/);
      assert.match(stdout, /why: the mirror does not answer/);
      assert.match(stdout, /the guest runs on the primary alone/);
      assert.match(stdout, /primary {2}current +reachable +\/images\/web1.qcow2/);
      assert.match(stdout, /mirror {3}STALE, whole as of 2026-.* UNREACHABLE +nbd:/);
      assert.match(stdout, /one current copy since 2026-\d\d-\d\d \d\d:00:00, for [^:]*: 1\.2 GiB on one copy only\n/);
    });

    const told = async (changes: Partial<DiskStatus>, running = true): Promise<string> => {
      agent.statuses.set('web1', domainWith({ running, disks: [diskWith(changes)] }));
      return (await run('status', 'web1')).stdout;
    };

    it('says of a mirror that no time is known for that it is not a whole copy', async () => {
      assert.match(await told({ ...exposed, mirror: mixedMirror }), /mirror {3}STALE, not a whole copy {2}UNREACHABLE/);
    });

    it('leaves out an amount that is not known', async () => {
      assert.match(await told({ ...exposed, exposedBytes: null }), /one current copy since [^\n]*, for \d+ d[^:\n]*\n/);
    });

    it('says whether a guest on neither copy is paused or does not run', async () => {
      assert.match(
        await told({ state: 'waiting', runningOn: 'none' }),
        /\(running, policy available\)[^]* the guest is paused\n/,
      );
      assert.match(
        await told({ state: 'waiting', runningOn: 'none' }, false),
        /\(not running, [^]* the guest does not run\n/,
      );
    });

    it('says when nothing is promised', async () => {
      assert.doesNotMatch(await told({}), /guarantee/);
      agent.statuses.set('web1', domainWith({ guarantee: 'none' }));
      assert.match((await run('status', 'web1')).stdout, /\(running, policy available, guarantee none\)/);
    });

    it('shows a job once it knows how much there is to do', async () => {
      const job = { kind: 'full-sync', done: 0, total: 0 } as const;
      assert.doesNotMatch(await told({ state: 'syncing', job }), /full-sync/);
      assert.match(await told({ state: 'syncing', job: { ...job, total: 1024 } }), / full-sync: 0%, 0 B of 1\.0 KiB\n/);
    });

    it('--json is an array, of one domain if one is named', async () => {
      const ended = await runProgram(['status', 'web1', '--json'], { VIRT_CDP_SOCKET: agent.socketPath });
      assert.deepEqual(domainStatusesSchema.parse(JSON.parse(ended.stdout)), [domainWith()]);
    });

    const stopped = { state: 'stopped', runningOn: 'none' } as const;
    for (const [code, disks] of [
      [0, [diskWith()]],
      [0, [diskWith(stopped)]],
      [10, [diskWith(), diskWith(exposed)]],
      [10, [diskWith({ ...stopped, mirror: staleMirror })]],
      [11, [diskWith({ state: 'broken' }), diskWith(exposed)]],
      [11, [diskWith({ ...stopped, primary: staleMirror, mirror: staleMirror })]],
    ] as const) {
      it(`--check exits ${code} for ${disks.map(({ state }) => state).join(' and ')}`, async () => {
        agent.statuses.set('web1', domainWith({ disks: [...disks] }));
        assert.equal((await run('status', '--check')).code, code);
      });
    }

    it('--check tells it in one line, with performance data', async () => {
      agent.statuses.set('web1', domainWith({ disks: [diskWith(), diskWith({ ...exposed, dev: 'vdb' })] }));
      const { stdout } = await run('status', '--check');
      assert.match(
        stdout,
        /^DEGRADED: web1 vdb exposed; 1 of 2 disks protected \| protected=1 degraded=1 broken=0 exposed=\d+s exposed_bytes=1288490189B\n$/,
      );
      agent.statuses.set('web1', domainWith());
      assert.equal(
        (await run('status', '--check')).stdout,
        'OK: 1 of 1 disks protected | protected=1 degraded=0 broken=0 exposed=0s exposed_bytes=0B\n',
      );
    });

    it('has colours on a terminal only, and not with NO_COLOR', async () => {
      const argv = ['status', '--socket', agent.socketPath];
      assert.match((await runHere(argv, { tty: true })).stdout, /\u001b\[32mprotected/);
      assert.doesNotMatch((await runHere(argv, { tty: true, env: { NO_COLOR: '1' } })).stdout, /\u001b/);
      assert.doesNotMatch((await runHere(argv)).stdout, /\u001b/);
    });
  });

  describe('actions', () => {
    it('send just what was asked for', async () => {
      const folder = await mkdtemp(join(tmpdir(), 'virt-cdp-cli-'));
      const xml = join(folder, 'mirror.xml');
      await writeFile(xml, '<disk/>');
      for (const [argv, args] of [
        [
          'protect web1 --disk vda --mirror /m --policy strict --create --rebuild-to /r',
          { disk: 'vda', mirror: '/m', policy: 'strict', create: true, rebuildTo: '/r' },
        ],
        [
          `protect web1 --disk vda --mirror-xml ${xml} --overwrite-mirror`,
          { disk: 'vda', mirrorXml: '<disk/>', overwriteMirror: true },
        ],
        ['unprotect web1 --disk vda --keep mirror', { disk: 'vda', keep: 'mirror' }],
        ['hold web1', {}],
        ['release web1', {}],
        ['failover web1 --accept-data-loss --no-wait', { acceptDataLoss: true }],
        ['rebuild web1 --to original --format raw', { to: 'original', format: 'raw' }],
        ['migrate web1 qemu+ssh://b/system --unprotected', { to: 'qemu+ssh://b/system', unprotected: true }],
        [
          'migrate web1 qemu:///b --dest-socket /s --virsh=--persistent',
          { to: 'qemu:///b', destSocket: '/s', options: ['--persistent'] },
        ],
        [`rebuild web1 --disk vda --to-xml ${xml}`, { disk: 'vda', toXml: '<disk/>' }],
        ['resync web1 --full', { full: true }],
        ['start web1 --accept-data-loss', { acceptDataLoss: true }],
      ] as const) {
        assert.equal((await run(...argv.split(' '))).code, 0, argv);
        assert.deepEqual(agent.acts.at(-1), { domain: 'web1', action: argv.split(' ')[0], args });
      }
      await rm(folder, { recursive: true });
    });

    it('are refused before they are sent when options contradict each other', async () => {
      assert.equal((await run('protect', 'web1', '--disk', 'vda')).code, 2);
      assert.equal((await run('protect', 'web1', '--disk', 'vda', '--mirror', '/m', '--mirror-xml', '/x')).code, 2);
      assert.equal((await run('rebuild', 'web1', '--to', '/m', '--to-xml', '/x')).code, 2);
      assert.equal((await run('rebuild', 'web1', '--to-xml', '/nonexistent')).code, 1);
      assert.deepEqual(agent.acts, []);
    });

    it('tell what would be lost before they give it up', async () => {
      const vdb = { ...exposed, dev: 'vdb', mirror: mixedMirror };
      agent.statuses.set('web1', domainWith({ disks: [diskWith(exposed), diskWith(vdb)] }));
      const failover = ['failover', 'web1', '--accept-data-loss', '--no-wait'];
      const both = (await run(...failover)).stderr.split('\n');
      assert.match(
        both[0]!,
        /^web1 vda: the mirror nbd:\/\/storage\/web1 is STALE, whole as of 2026-.*; what was written later is not on it$/,
      );
      assert.match(
        both[1]!,
        /^web1 vdb: the mirror nbd:\/\/storage\/web1 is STALE, not a whole copy; a guest may not even boot from it$/,
      );
      assert.match(both[2]!, /^web1 would run on disks of different times: /);
      assert.match((await run(...failover, '--disk', 'vdb')).stderr, /^web1 vdb: .*\nweb1 would run on disks .*\n$/);
      agent.statuses.set(
        'web1',
        domainWith({ running: false, disks: [diskWith({ ...exposed, state: 'stopped', runningOn: 'none' })] }),
      );
      assert.match((await run('start', 'web1', '--accept-data-loss')).stderr, /^web1 vda: the mirror .*\n$/);
    });

    it('tell of no loss where the action can only be refused', async () => {
      const disks = [diskWith(exposed)];
      agent.onAct = () => Promise.reject(new CdpError({ code: 'why', message: 'it is so' }));
      for (const [action, status] of [
        ['start', domainWith({ disks })],
        ['failover', domainWith({ running: false, disks })],
        [
          'failover',
          domainWith({ disks: [diskWith({ primary: staleMirror, mirror: staleMirror, runningOn: 'mirror' })] }),
        ],
      ] as const) {
        agent.statuses.set('web1', status);
        assert.equal((await run(action, 'web1', '--accept-data-loss')).stderr, 'error: it is so\n');
      }
      assert.equal(agent.acts.length, 3);
    });
  });

  describe('events', () => {
    beforeEach(() => {
      agent.emit({ detail: { error: 'EIO', path: '/a b' } });
      agent.emit({ domain: 'db', disk: null, event: 'declared', from: null, to: null });
    });

    it('are lines for people', async () => {
      const lines = (await run('events')).stdout.trimEnd().split('\n');
      assert.match(
        lines[0]!,
        /^ {3}1 {2}2026-01-31 \d\d:00:00 {2}web1 vda {2}primary-lost {2}protected -> failed-over /,
      );
      assert.match(lines[0]!, / {2}error=EIO path="\/a b"$/);
      assert.match(lines[1]!, /^ {3}2 {2}2026-01-31 \d\d:00:00 {2}db {2}declared$/);
    });

    it('--json is one object a line', async () => {
      const { stdout } = await run('events', '--json', '--domain', 'web1');
      const lines = stdout.trim().split('\n');
      assert.deepEqual(
        lines.map((line) => protectionEventSchema.parse(JSON.parse(line))),
        [agent.past[0]],
      );
    });

    it('--since and a UUID as --domain', async () => {
      const { uuid } = domainWith();
      agent.statuses.set(uuid, domainWith());
      assert.equal((await run('events', '--domain', uuid)).stdout.split('\n').length, 2);
      assert.equal((await run('events', '--domain', uuid, '--since', '1')).stdout, '');
      assert.equal((await run('events', '--domain', '99')).stdout, '');
    });

    it('--follow --json tells on stderr that the agent has gone, for stdout has events alone', async () => {
      const ended = run('events', '--follow', '--json');
      while (agent.followers === 0) await sleep(5);
      await agent.stop();
      const { code, stdout, stderr } = await ended;
      assert.equal(code, 3);
      assert.deepEqual(
        stdout
          .trim()
          .split('\n')
          .map((line) => protectionEventSchema.parse(JSON.parse(line))),
        agent.past,
      );
      assert.match(stderr, /^error: the agent at .* has ended the stream of events\nhint: /);
      assert.equal(errorCode(await run('events', '--follow', '--json')), 'agent-unreachable');
      agent = await new FakeAgent().start();
    });

    it('--follow goes on until Ctrl-C', async () => {
      const env = { VIRT_CDP_SOCKET: agent.socketPath };
      const ended = await runProgram(['events', '--follow'], env, (stdout, kill) => {
        const lines = stdout.split('\n').length - 1;
        if (lines === 2) agent.emit({ event: 'rebuild-started' });
        if (lines === 3) kill('SIGINT');
      });
      assert.equal(ended.code, 0);
      assert.match(ended.stdout, /rebuild-started/);
    });
  });
});

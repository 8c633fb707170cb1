import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CdpError } from '../../../src/errors.ts';
import { killRelays, relayFolder } from '../../../src/protection/relays/relay-folder.ts';
import { Relays } from '../../../src/protection/relays/relays.ts';
import type { Image } from '../../../src/storage/image.ts';
import { ImageOpener } from '../../../src/storage/opener.ts';

const password = 'sesame-open-46';
const owner = { uuid: '7d1e2f0c-52a4-4b6e-9a0b-3f1c8e5d4a21', name: 'no-such-domain' };
const lun: Image = {
  source: {
    ...{ kind: 'iscsi', host: '127.0.0.1', port: 3260, target: 'iqn.2026-01.org.virt-cdp:relay', lun: 1 },
    initiator: null,
    login: { username: 'cdp', secret: { usage: 'lun' } },
  },
  format: 'qcow2',
};

/** Stands in for qemu-nbd: it is ready at once, and stays. */
const servesAtOnce = `for arg; do
  case $arg in --socket=*) : >"\${arg#*=}" ;; --pid-file=*) : >"\${arg#*=}" ;; esac
done
exec sleep 600`;

describe('relays', function () {
  this.timeout(20_000);
  const path = process.env['PATH'];
  let root: string;
  let folder: string;
  let opener: ImageOpener;
  let relays: Relays;

  beforeEach(async () => {
    root = await mkdtemp(join(tmpdir(), 'virt-cdp relays '));
    folder = join(root, 'relays');
    opener = new ImageOpener({
      readSecret: () => Promise.resolve(Buffer.from(password)),
      timeoutMs: () => 1_000,
      folder: root,
      certificates: () => Promise.reject(new Error('no TLS here')),
    });
    relays = new Relays(() => join(root, 'virt-cdp.sock'), opener);
    process.env['PATH'] = `${root}:${path}`;
  });

  afterEach(async () => {
    process.env['PATH'] = path;
    await relays.endAll(owner);
    opener.close();
    await rm(root, { recursive: true });
  });

  function qemuNbdIs(script: string): void {
    const program = join(root, 'qemu-nbd');
    writeFileSync(program, `#!/bin/sh\n${script}\n`);
    chmodSync(program, 0o755);
  }

  const reach = (deadlineMs = 10_000): Promise<Image> => relays.reach(owner, 'vda', lun, deadlineMs);

  async function fails(reached: Promise<unknown>): Promise<CdpError> {
    const error = await reached.then(
      () => null,
      (thrown: unknown) => thrown,
    );
    assert.ok(error instanceof CdpError, String(error));
    return error;
  }

  function pid(): number {
    const found = relays.pidOf(owner, 'vda');
    assert.ok(found !== null, 'it runs');
    return found;
  }

  it('serve a LUN as a raw export that has the format of the mirror, and know no password that anybody could read', async () => {
    qemuNbdIs(`echo "$@" >"$(dirname "$0")/arguments"\n${servesAtOnce}`);
    const { source, format } = await reach();
    const socket = join(relayFolder(folder, owner.uuid, 'vda'), 'socket');
    assert.deepEqual([source, format], [{ kind: 'nbd', server: { socket }, exportName: '' }, 'qcow2']);
    const args = readFileSync(join(root, 'arguments'), 'utf8');
    assert.match(args, /--cache=none --discard=unmap/);
    assert.match(args, /"driver":"raw","file":{"driver":"iscsi"/);
    assert.ok(args.includes(`"initiator-name":"iqn.2008-11.org.linux-kvm:${owner.uuid}"`), 'QEMU would call itself so');
    const environment = readFileSync(`/proc/${pid()}/environ`, 'utf8');
    for (const secret of [password, Buffer.from(password).toString('base64')])
      assert.ok(!`${args}${environment}`.includes(secret));
  });

  it('are not needed for other storage', async () => {
    const file: Image = { source: { kind: 'file', path: '/a' }, format: 'raw' };
    assert.equal(await relays.reach(owner, 'vda', file, 1_000), file);
    assert.equal(existsSync(folder), false);
  });

  it('are one for a disk: the former is dead before another is begun', async () => {
    qemuNbdIs(servesAtOnce);
    await reach();
    const first = pid();
    await relays.reach(owner, 'vdb', lun, 10_000);
    // One that looks for the first.
    qemuNbdIs(`kill -0 ${first} 2>/dev/null && exit 3\n${servesAtOnce}`);
    await reach();
    assert.notEqual(pid(), first);
    assert.notEqual(relays.pidOf(owner, 'vdb'), null, 'another disk keeps its own');
  });

  it('are found by every agent, and ended with all they leave', async () => {
    qemuNbdIs(servesAtOnce);
    await reach();
    const other = new Relays(() => join(root, 'virt-cdp.sock'), opener);
    assert.equal(other.pidOf(owner, 'vda'), pid());
    await other.end(owner, 'vda');
    assert.equal(relays.pidOf(owner, 'vda'), null);
    assert.deepEqual(readdirSync(folder), []);
    await other.end(owner, 'vda');
  });

  it('of a domain that starts are ended at once', async () => {
    qemuNbdIs(servesAtOnce);
    await reach();
    const one = pid();
    killRelays(folder, 'another');
    assert.equal(pid(), one);
    killRelays(folder, owner.uuid);
    await relays.end(owner, 'vda');
    assert.equal(relays.pidOf(owner, 'vda'), null);
  });

  it('are not taken for a process that has their number now', async () => {
    const foreign = spawn('sleep', ['600'], { stdio: 'ignore' });
    try {
      await once(foreign, 'spawn');
      const at = relayFolder(folder, owner.uuid, 'vda');
      mkdirSync(at, { recursive: true });
      const stat = readFileSync(`/proc/${foreign.pid}/stat`, 'utf8').split(' ');
      stat[21] = String(Number(stat[21]) - 1);
      writeFileSync(join(at, 'process'), stat.join(' '));
      assert.equal(relays.pidOf(owner, 'vda'), null);
      await relays.endAll(owner);
      killRelays(folder, owner.uuid);
      assert.equal(foreign.exitCode ?? foreign.signalCode, null);
      process.kill(foreign.pid!, 0);
    } finally {
      foreign.kill('SIGKILL');
      await once(foreign, 'exit');
    }
  });

  it('that ended are begun again in their place; where there was none, none is', async () => {
    qemuNbdIs(servesAtOnce);
    await relays.revive(owner, 'vda', lun, 10_000);
    assert.equal(relays.pidOf(owner, 'vda'), null);
    await reach();
    const first = pid();
    await relays.revive(owner, 'vda', lun, 10_000);
    assert.equal(pid(), first, 'one that runs is left alone');
    killRelays(folder, owner.uuid);
    while (relays.pidOf(owner, 'vda') !== null) await new Promise((resolve) => setTimeout(resolve, 5));
    qemuNbdIs('exit 1');
    assert.equal((await fails(relays.revive(owner, 'vda', lun, 10_000))).code, 'relay-failed');
    qemuNbdIs(servesAtOnce);
    await relays.revive(owner, 'vda', lun, 10_000);
    assert.notEqual(pid(), first);
  });

  it('that can not open the LUN say why', async () => {
    qemuNbdIs(`echo "qemu-nbd: Failed to blk_new_open 'json:{\\"a\\":1}': iSCSI: no such LUN" >&2; exit 1`);
    const error = await fails(reach());
    assert.equal(error.code, 'relay-failed');
    assert.match(
      error.message,
      /iqn.2026-01.org.virt-cdp:relay\/1' could not be opened for QEMU: .*: Failed to blk_new_open iSCSI: no such LUN$/,
    );
  });

  it('that are not ready in time are ended', async () => {
    qemuNbdIs('exec sleep 600');
    const error = await fails(reach(200));
    assert.match(error.message, /not ready within 200 ms/);
    while (relays.pidOf(owner, 'vda') !== null) await new Promise((resolve) => setTimeout(resolve, 5));
  });

  it('are missed, with what to install', async () => {
    const bin = join(root, 'bin');
    mkdirSync(bin);
    for (const program of ['sh', 'cat', 'ss']) {
      writeFileSync(join(bin, program), `#!/bin/sh\nexec /bin/${program} "$@"\n`);
      chmodSync(join(bin, program), 0o755);
    }
    process.env['PATH'] = bin;
    const error = await fails(reach());
    assert.equal(error.code, 'tool-missing');
    assert.match(error.hint ?? '', /qemu-utils/);
  });
});

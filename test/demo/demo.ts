import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ProtectionEvent } from '../../src/protection/model.ts';
import type { Guest } from '../lab/guest.ts';
import { Lab } from '../lab/lab.ts';
import type { NbdServer } from '../lab/storage.ts';
import { prove, type Proof } from './proof.ts';
import { Pulse } from './pulse.ts';
import { Screen } from './screen.ts';
import { Terminal } from './terminal.ts';

const usage = `usage: npm run demo [-- --json]

Boots a guest on a libvirtd of its own, protects its disk, breaks the disk while the guest writes, rebuilds it, and proves
that both copies hold every acknowledged write. With --json the last line on stdout is one JSON object.
`;

/** Whoever waits longer than this waits in vain. */
const deadlineMs = 170_000;

const name = 'web1';
const diskMiB = 192;
/** A first sync that can be watched. */
const syncMiBPerS = 96;

/** What `--json` prints; null is what was not reached. */
interface Verdict {
  ok: boolean;
  reason?: string;
  rpo: { acknowledged: number; lost: number | null };
  armPauseMs: number | null;
  failoverMs: number | null;
  rearmPauseMs: number | null;
  guestErrors: number | null;
  engine: string | null;
}

export async function main(args: readonly string[]): Promise<number> {
  if (args.includes('--help')) {
    process.stdout.write(usage);
    return 0;
  }
  const unknown = args.find((arg) => arg !== '--json');
  if (unknown !== undefined) {
    process.stderr.write(`demo: there is no option ${unknown}\n${usage}`);
    return 2;
  }
  const json = args.includes('--json');
  const screen = new Screen(json ? process.stderr : process.stdout);
  const verdict: Verdict = {
    ok: false,
    rpo: { acknowledged: 0, lost: null },
    armPauseMs: null,
    failoverMs: null,
    rearmPauseMs: null,
    guestErrors: null,
    engine: null,
  };
  try {
    await untilSignal((signal) => inLab(screen, signal, verdict));
    verdict.ok = true;
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    verdict.reason = message.split('\n', 1)[0] ?? '';
    screen.tell(screen.style('red', `FAILED: ${message}`));
  } finally {
    screen.close();
  }
  if (json) process.stdout.write(`${JSON.stringify(verdict)}\n`);
  return verdict.ok ? 0 : 1;
}

/** Ctrl-C and its like end the work in good order: `work` is told by its signal, and cleans up. */
async function untilSignal(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const interruption = new AbortController();
  const interrupt = (signal: NodeJS.Signals): void => interruption.abort(new Error(`ended by ${signal}`));
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) process.on(signal, interrupt);
  const timer = setTimeout(
    () => interruption.abort(new Error(`not at the end after ${deadlineMs / 1000} s`)),
    deadlineMs,
  );
  try {
    await work(interruption.signal);
  } finally {
    clearTimeout(timer);
    for (const signal of signals) process.off(signal, interrupt);
  }
}

/** Whatever happens, nothing of the laboratory is left behind. */
async function inLab(screen: Screen, signal: AbortSignal, verdict: Verdict): Promise<void> {
  screen.tell('a libvirtd of our own starts in a scratch folder; that of this host is not touched');
  const lab = await Lab.start();
  try {
    const interrupted = once(signal, 'abort').then(() => signal.throwIfAborted());
    signal.throwIfAborted();
    await Promise.race([story(lab, screen, verdict), interrupted]);
  } finally {
    screen.showLive(() => []);
    await lab.close();
  }
}

async function story(lab: Lab, screen: Screen, verdict: Verdict): Promise<void> {
  const agent = await lab.agent({ config: { resync: { max_bytes_per_s: syncMiBPerS << 20 } } });
  const terminal = new Terminal(lab, agent, screen);
  terminal.followEvents();
  const local = await storageServer(lab, 'local', randomBytes(diskMiB << 20));
  const external = await storageServer(lab, 'external', Buffer.alloc(diskMiB << 20));
  screen.tell(
    (await lab.virsh('version')).replace(
      /^[^]*Using API: QEMU (\S+)[^]*hypervisor: QEMU (\S+)[^]*$/,
      'libvirt $1, QEMU $2',
    ),
  );
  screen.tell(`the guest ${name} boots; its disk vda, ${diskMiB} MiB, is on ${local.uri}`);
  const guest = await lab.domain({
    name,
    disks: [{ dev: 'vda', bus: 'virtio', image: { format: 'raw', nbd: local.address } }],
  });
  const pulse = new Pulse(guest.witness);
  screen.showLive(() => [pulse.line(screen.tty ? 4 : 1), ...terminal.progress]);
  screen.tell(
    'it writes numbered, checksummed records of 4 KiB, flushes each, and then prints "acknowledged" on its console',
  );
  await watch(guest);

  screen.heading(
    'STEP 1  The mirror disk of a storage server outside the host is attached',
    'STEP 2  After a first sync, every write goes to both disks before it is acknowledged',
  );
  screen.detail(`(the sync is limited to ${syncMiBPerS} MiB/s here, so that it can be watched)`);
  await terminal.type('protect', name, '--disk', 'vda', '--mirror', external.uri);
  const armed = await terminal.event('protected');
  verdict.armPauseMs = pausedMs(armed);
  screen.tell(`the guest was paused for ${verdict.armPauseMs} ms, to put the two-copy writer under its disk`);
  await terminal.type('status', name);
  await watch(guest);

  screen.heading('STEP 3  The disk is damaged: the mirror disk becomes the main disk');
  pulse.mark();
  screen.tell(screen.style('red', `${local.uri} breaks: every read and every write of it fails from now on`));
  local.failAll();
  const failedOver = await terminal.event('failed-over', armed);
  verdict.failoverMs = pausedMs(failedOver);
  await watch(guest);
  screen.tell(
    `failed over: ${verdict.failoverMs} ms from the I/O error to running again, without a reboot; the longest the guest ` +
      `waited for an acknowledgement: ${pulse.longestWaitMs} ms`,
  );
  await terminal.type('status', name);
  screen.tell("libvirt's own definition of the guest names the mirror now:");
  await terminal.virsh('domblklist', name, '--inactive', '--details');

  screen.heading(
    'STEP 4  A new disk is made: the mirror is restored onto it while new writes go to both',
    'STEP 5  When that is done, the new disk becomes the main disk, and the mirror is the mirror again',
  );
  const rebuilt = lab.path(`${name}-new.qcow2`);
  await terminal.type('rebuild', name, '--to', rebuilt);
  const rearmed = await terminal.event('protected', failedOver);
  verdict.rearmPauseMs = pausedMs(rearmed);
  screen.tell(`the guest was paused for ${verdict.rearmPauseMs} ms, to move back`);
  await terminal.type('status', name);
  verdict.engine = (await agent.status(name)).engine;
  await watch(guest);

  screen.heading('PROOF  The guest shuts down, and every copy is read');
  await guest.shutdown();
  await terminal.event('stopped', rearmed);
  screen.showLive(() => []);
  const proof = await prove(guest.witness, {
    primary: { filename: rebuilt, format: 'qcow2' },
    mirror: { filename: external.file, format: 'raw' },
    broken: { filename: local.file, format: 'raw' },
  });
  verdict.rpo = { acknowledged: proof.acknowledged, lost: proof.lost };
  verdict.guestErrors = proof.guestErrors;
  tellProof(screen, proof);
  const flaw = flawOf(proof);
  if (flaw !== null) throw new Error(flaw);
  const pauses = terminal.pausesMs;
  screen.tell(
    screen.style(
      'green',
      `no acknowledged write was lost; the guest noticed nothing but ${pauses.length} pauses of ${pauses.join(', ')} ms`,
    ),
  );
}

async function storageServer(lab: Lab, exportName: string, content: Buffer): Promise<NbdServer> {
  const file = lab.path(`${exportName}.raw`);
  writeFileSync(file, content);
  return lab.nbd({ name: exportName, file, listen: { port: 0 } });
}

/** Time to see the guest write. */
async function watch(guest: Guest): Promise<void> {
  await Promise.all([sleep(1500), guest.witness.waitForAcks(40, 30_000)]);
}

/** From QEMU's own STOP to its RESUME. */
function pausedMs({ event, detail }: ProtectionEvent): number {
  const paused = detail['pausedMs'];
  if (typeof paused !== 'number') throw new Error(`the event ${event} does not tell how long the guest was paused`);
  return paused;
}

function tellProof(screen: Screen, proof: Proof): void {
  const good = (text: string, isGood: boolean): string => screen.style(isGood ? 'green' : 'red', text);
  const rows: [string, string][] = [
    ['records acknowledged to the guest', String(proof.acknowledged)],
    ['of these missing on the new primary', good(String(proof.missing.primary), proof.missing.primary === 0)],
    ['of these missing on the mirror', good(String(proof.missing.mirror), proof.missing.mirror === 0)],
    ['primary and mirror', good(proof.identical ? 'identical' : proof.difference, proof.identical)],
    ['errors the guest saw', good(String(proof.guestErrors), proof.guestErrors === 0)],
    ['missing on the broken disk, to show that loss would be seen', String(proof.missing.broken)],
  ];
  for (const [label, value] of rows) screen.detail(`${label.padEnd(62)}${value}`);
}

function flawOf({ acknowledged, lost, identical, guestErrors, missing }: Proof): string | null {
  if (acknowledged === 0) return 'the guest wrote nothing';
  if (lost > 0) return `${lost} acknowledged records are missing`;
  if (guestErrors > 0) return `the guest saw ${guestErrors} errors`;
  if (!identical) return 'the copies differ';
  if (missing.broken === 0) return 'the broken disk lacks nothing, so nothing was proved';
  return null;
}

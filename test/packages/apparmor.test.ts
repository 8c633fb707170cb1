import assert from 'node:assert/strict';
import { appendFile, chmod, copyFile, cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join, matchesGlob, relative } from 'node:path';
import { parseConfig } from '../../src/config/config.ts';
import { nbdCertificates } from '../../src/config/qemu-conf.ts';
import { relayFolder, relaySocket, relaysFolder } from '../../src/protection/relays/relay-folder.ts';
import { writeCephConfig } from '../../src/storage/ceph-config.ts';
import { handNewImage } from '../../src/storage/descriptors.ts';
import { scratchOf } from '../../src/storage/scratch.ts';
import { must, run } from '../lab/run.ts';

const ours = join(import.meta.dirname, '../../packaging/apparmor/virt-cdp');
const uuid = '2b8d53c6-0d34-4e86-9f1e-3f6d1f0c9a11';
const defaults = parseConfig('', '/etc/virt-cdp/virt-cdp.toml');

/** No kernel with AppArmor is needed to read a profile: what one would do with it, this does not show. */
describe("the AppArmor profile of libvirt's domains with virt-cdp's part", function () {
  this.timeout(60_000);
  let folder: string;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'virt-cdp-apparmor-'));
    const parts = ['abi', 'abstractions', 'local', 'tunables'];
    for (const part of parts) await cp(join('/etc/apparmor.d', part), join(folder, part), { recursive: true });
    await mkdir(dirname(installed()), { recursive: true });
    await mkdir(join(folder, 'local/abstractions'), { recursive: true });
    // As packaging/after-install.sh does on Debian 12; the packages' own test has it done.
    const local = join(folder, 'local/abstractions/libvirt-qemu');
    await appendFile(local, 'include if exists <abstractions/libvirt-qemu.d>\n');
  });

  beforeEach(() => copyFile(ours, installed()));

  after(() => rm(folder, { recursive: true }));

  const installed = (): string => join(folder, 'abstractions/libvirt-qemu.d/virt-cdp');

  /** The parser on the profile that libvirt makes a domain's of, with nothing given to the kernel. */
  const parserArgs = (...options: string[]): string[] => [
    ...[...options, '--skip-kernel-load', '--skip-cache', '--base', folder],
    ...['--features-file', join(folder, 'abi/3.0'), '/etc/apparmor.d/libvirt/TEMPLATE.qemu'],
  ];
  const compile = (): ReturnType<typeof run> =>
    run('sh', ['-c', 'exec apparmor_parser "$@" >/dev/null', 'sh', ...parserArgs('--stdout')]);

  it('compiles, also with the lines that it suggests', async () => {
    assert.equal((await compile()).code, 0);
    const text = await readFile(ours, 'utf8');
    const suggested = text.replaceAll(/^# {3}(?=\/)/gm, '');
    assert.notEqual(suggested, text);
    await writeFile(installed(), suggested);
    const { code, stderr } = await compile();
    assert.equal(code, 0, stderr);
  });

  it('is refused with a bad line, which is named', async () => {
    await appendFile(installed(), '/srv/mirrors/** everything,\n');
    const { code, stderr } = await compile();
    assert.notEqual(code, 0);
    const line = (await readFile(installed(), 'utf8')).trimEnd().split('\n').length;
    assert.match(stderr, new RegExp(`libvirt-qemu\\.d/virt-cdp at line ${line}:`));
  });

  it("allows QEMU each path outside the definition at which it opens or makes something with the configuration's defaults", async () => {
    const rules = rulesOf(await must('apparmor_parser', ...parserArgs('--preprocess')));
    for (const { what, path, modes, byQemu = false } of await pathsOf(folder)) {
      const allowed = rules.filter(({ glob, owner }) => matchesGlob(path, glob) && (byQemu || !owner));
      for (const mode of modes)
        assert.ok(
          allowed.some((rule) => rule.modes.includes(mode)),
          `${what}, ${path}: '${mode}' is not allowed`,
        );
    }
  });
});

interface Opened {
  what: string;
  path: string;
  /** Reading, writing, and locking (k), which QEMU does to images. */
  modes: string;
  /** It is QEMU's user's own, because QEMU makes it. */
  byQemu?: boolean;
}

/** As the code itself makes them. */
async function pathsOf(scratch: string): Promise<Opened[]> {
  const runtime = dirname(defaults.socket);
  const run = join(scratch, 'run');
  const cephConfig = relative(run, await writeCephConfig(run, { config: null, login: null }, 1000));
  const relay = relayFolder(relaysFolder(defaults.socket), uuid, 'vda');
  const certificates = (own: boolean): Promise<string> => nbdCertificates({ exists: () => own });
  return [
    { what: "Ceph's settings", path: join(runtime, cephConfig), modes: 'r' },
    { what: "a relay's socket", path: relaySocket(relay), modes: 'rw' },
    { what: 'a key for NBD', path: join(await certificates(true), 'client-key.pem'), modes: 'r' },
    { what: "QEMU's key", path: join(await certificates(false), 'client-key.pem'), modes: 'r' },
    { what: 'an image of a verify', path: join(defaults.verify.scratch, await nameOfNewImage(scratch)), modes: 'rwk' },
    { what: "a verify's socket", path: scratchOf(defaults.verify.scratch, uuid).socket, modes: 'rw', byQemu: true },
  ];
}

/** The name that an image had whose descriptor QEMU is handed: AppArmor asks for it, though nothing has it any more. */
async function nameOfNewImage(scratch: string): Promise<string> {
  const [virsh, seen] = [join(scratch, 'virsh'), join(scratch, 'seen')];
  await writeFile(virsh, `#!/bin/sh\nreadlink /proc/self/fd/3 >${seen}\necho '{"return":{}}'\n`);
  await chmod(virsh, 0o755);
  const path = process.env['PATH'];
  process.env['PATH'] = `${scratch}:${path ?? ''}`;
  try {
    await handNewImage(scratch, 1 << 20, { libvirtSocket: '/none', domainId: 1 }, 10_000);
  } finally {
    process.env['PATH'] = path;
  }
  return basename((await readFile(seen, 'utf8')).trim().replace(/ \(deleted\)$/, ''));
}

/** apparmor.d(5): a file rule is a path, in which the wildcards mean what they mean to a shell, and what may be done to it. */
function rulesOf(profile: string): { glob: string; modes: string; owner: boolean }[] {
  const rules = profile.matchAll(/^[ \t]*(owner[ \t]+)?(\/\S*)[ \t]+([a-zA-Z]+),/gm);
  return [...rules].map(([, owner, glob = '', modes = '']) => ({ glob, modes, owner: owner !== undefined }));
}

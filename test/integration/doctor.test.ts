import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { send } from '../../src/control/transport.ts';
import type { Finding } from '../../src/doctor/finding.ts';
import { setScene } from './scene.ts';

describe('virt-cdp doctor, on a real libvirtd', function () {
  this.timeout(150_000);
  const scene = setScene();

  async function ask(): Promise<Finding[]> {
    const { stdout, stderr } = await scene.agent.cdp('doctor', '--json', '--config', scene.agent.configPath);
    assert.equal(stderr, '');
    return JSON.parse(stdout) as Finding[];
  }

  async function of(check: string): Promise<Finding> {
    const found = (await ask()).filter((finding) => finding.check === check);
    assert.equal(found.length, 1, JSON.stringify(found, null, 2));
    return found[0]!;
  }

  it('knows this QEMU, and whether the hook is called by the libvirtd that runs', async () => {
    const { lab, agent } = scene;
    assert.equal((await of('hook')).severity, 'error');
    const { severity, what } = await of('emulator');
    assert.equal(severity, 'ok', what);
    assert.match(what, /qemu-system-\S+, version \S+, has the quorum driver/);

    await agent.mustCdp('install-hook', '--dir', lab.libvirtd.hooksDir, '--config', agent.configPath);
    const unnoticed = await of('hook');
    assert.equal(unnoticed.severity, 'unknown', unnoticed.what);
    assert.equal(unnoticed.fix, `kill -HUP ${lab.libvirtd.pid}`);

    lab.libvirtd.reload();
    const image = await lab.image('doctor.raw');
    await scene.guest({ name: 'web1', start: false, disks: [{ dev: 'vda', bus: 'virtio', image }] });
    await lab.virsh('start', 'web1', '--paused');
    await lab.virsh('destroy', 'web1');
    const noticed = await of('hook');
    assert.equal(noticed.severity, 'ok', noticed.what);
    assert.match(noticed.what, /calls it/);
  });

  it("finds the agent's own figures in its metrics", async () => {
    const { socket: socketPath } = scene.agent;
    const { text } = await send({ socketPath, method: 'GET', path: '/metrics', deadlineMs: 10_000 });
    assert.match(text, /^virt_cdp_libvirt_connected 1$/m);
    assert.match(text, /^nodejs_eventloop_lag_seconds /m);
  });

  it('finds planted faults, each with what to type', async () => {
    const { lab, agent } = scene;
    const image = await lab.image('faulty.raw');
    const guest = await scene.guest({ name: 'web2', start: false, disks: [{ dev: 'vda', bus: 'virtio', image }] });
    const mirror = lab.path('faulty-mirror.raw');
    await agent.mustCdp('protect', 'web2', '--disk', 'vda', '--mirror', mirror, '--create');
    assert.equal((await of('copies')).severity, 'ok');

    rmSync(mirror);
    const policies = join(dirname(agent.configPath), 'policy.d');
    mkdirSync(policies);
    writeFileSync(join(policies, 'broken.toml'), 'domains = 7\n');
    const hook = join(lab.libvirtd.hooksDir, 'qemu.d/50-virt-cdp');
    chmodSync(hook, 0o644);
    await agent.kill('SIGTERM');
    const xml = (await guest.xml('--inactive')).replaceAll(/ r?error_policy='stop'/g, '');
    writeFileSync(join(lab.root, 'without.xml'), xml);
    await lab.virsh('define', join(lab.root, 'without.xml'));
    writeFileSync(join(agent.storeDir, 'domains', 'torn.json'), '{');

    const found = (await ask()).filter(({ severity }) => severity === 'error');
    for (const [check, what, fix] of [
      ['hook', /not executable/, /chmod 755/],
      ['agent', /does not answer/, /systemctl/],
      ['store', /torn\.json/, /restored/],
      ['policy-files', /broken\.toml/, /broken\.toml/],
      ['stop-policy', /web2 vda is defined without/, /virsh edit web2/],
    ] as const) {
      const one = found.filter((finding) => finding.check === check);
      assert.equal(one.length, 1, `${check}: ${JSON.stringify(found, null, 2)}`);
      assert.match(one[0]!.what, what);
      assert.match(one[0]!.fix ?? '', fix);
    }
    const copies = await of('copies');
    assert.match(copies.what, /the mirror of web2 vda, '.*faulty-mirror\.raw', can't be read/);
    rmSync(join(agent.storeDir, 'domains', 'torn.json'));
  });
});

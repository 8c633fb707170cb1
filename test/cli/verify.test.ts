import assert from 'node:assert/strict';
import type { DiskVerdict } from '../../src/protection/model.ts';
import { FakeAgent, domainWith, noon } from '../control/fake-agent.ts';
import { runHere } from './run-cli.ts';

const block = 65_536;

describe('virt-cdp verify', () => {
  let agent: FakeAgent;
  beforeEach(async () => {
    agent = await new FakeAgent().start();
    agent.statuses.set('web1', domainWith());
  });
  afterEach(() => agent.stop());

  async function told(verdict: Partial<DiskVerdict>): Promise<[code: number | null, stdout: string]> {
    const whole: DiskVerdict = {
      dev: 'vda',
      asOf: noon,
      comparedBytes: 1024 * block,
      differences: [],
      differingBytes: 0,
      unsettledBytes: 0,
      complete: true,
      repairing: false,
      ...verdict,
    };
    agent.onAct = () => ({ message: 'compared', warnings: [], status: domainWith(), verdicts: [whole] });
    const { code, stdout } = await runHere(['--socket', agent.socketPath, 'verify', 'web1']);
    return [code, stdout];
  }

  it('calls identical what was compared to the end, and no more', async () => {
    assert.deepEqual(await told({}), [0, `web1 vda: the copies are identical as of ${noon} (64.0 MiB)\n`]);
    assert.deepEqual(await told({ unsettledBytes: 256 * block }), [
      0,
      `web1 vda: the copies are identical as of ${noon} (48.0 MiB)\n` +
        '16.0 MiB more could not be judged: the guest writes there all the time\n',
    ]);
  });

  it('says where they differ, and what to do', async () => {
    assert.deepEqual(await told({ differences: [{ offset: block, length: block }], differingBytes: block }), [
      1,
      `web1 vda: the copies differ in 64.0 KiB, as of ${noon}:\n` +
        '  offset 65536  length 65536\n' +
        'to bring the mirror up to date there: add --repair\n',
    ]);
  });

  it('calls nothing identical where too much differs to go on', async () => {
    const rest = 'web1 vda: so much differs that the rest was not compared: virt-cdp resync web1 --full\n';
    assert.deepEqual(await told({ complete: false }), [1, rest]);
  });
});

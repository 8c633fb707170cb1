import { writeFileSync } from 'node:fs';
import { tinyDomainXml, writeBootSector } from '../../lab/boot-sector.ts';
import type { Bench } from '../bench.ts';
import { row } from '../figures.ts';
import { Stage } from '../stage.ts';

/** From `virsh start` to protected, against a `virsh start` of a domain that is not. */
export const start: Bench = {
  name: 'start',
  run: ({ quick }) =>
    Stage.with(async (stage) => {
      await stage.agent.installHook();
      stage.lab.libvirtd.reload();
      for (const name of ['plain', 'web1']) await define(stage, name);
      await stage.lab.virsh('start', 'web1');
      await stage.protect('web1', 'vda', (await stage.nbd({ name: 'web1-mirror', sizeBytes: 1 << 20 })).uri);
      const [protectedMs, plainMs] = [[], []] as [number[], number[]];
      for (let round = 0; round < (quick ? 2 : 10); round++) {
        await stage.lab.virsh('destroy', 'web1');
        let beganMs = performance.now();
        await stage.lab.virsh('start', 'plain');
        plainMs.push(performance.now() - beganMs);
        await stage.lab.virsh('destroy', 'plain');

        const since = await stage.lastEvent();
        beganMs = performance.now();
        await stage.lab.virsh('start', 'web1');
        await stage.eventAfter(since, 'web1', 'protected');
        protectedMs.push(performance.now() - beganMs);
      }
      return [
        row('start', {
          what: 'virsh start until protected, with a full sync of 1 MiB',
          unit: 'ms',
          values: protectedMs,
          against: 'virsh start of a domain that is not protected',
          bases: plainMs,
        }),
      ];
    }),
};

async function define(stage: Stage, name: string): Promise<void> {
  const { address, file } = await stage.nbd({ name, sizeBytes: 1 << 20 });
  await writeBootSector(file);
  if (!('socket' in address)) throw new Error('the lab serves on unix sockets');
  const xml = stage.lab.path(`${name}.xml`);
  writeFileSync(xml, tinyDomainXml(name, address));
  await stage.lab.virsh('define', xml);
}

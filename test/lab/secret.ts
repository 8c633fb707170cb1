import { randomUUID } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';

export interface LabSecret {
  type: 'ceph' | 'iscsi' | 'volume';
  /** What a `<source>` names it by. */
  usage: string;
  base64: string;
  /** Nobody but libvirt can read it. */
  isPrivate?: boolean;
}

const usageElement = { ceph: 'name', iscsi: 'target', volume: 'volume' } as const;

/** Whose libvirt it is, and where a file may be written: the laboratory itself, or another host. */
interface SecretKeeper {
  virsh(...args: string[]): Promise<string>;
  path(fileName: string): string;
}

/** Gives libvirt a secret, of which it alone keeps the value in a file; its UUID. */
export async function defineSecret(
  lab: SecretKeeper,
  { type, usage, base64, isPrivate = false }: LabSecret,
): Promise<string> {
  const uuid = randomUUID();
  const element = usageElement[type];
  const path = lab.path(`${uuid}.xml`);
  const scope = `ephemeral='no' private='${isPrivate ? 'yes' : 'no'}'`;
  writeFileSync(
    path,
    `<secret ${scope}><uuid>${uuid}</uuid><usage type='${type}'><${element}>${usage}</${element}></usage></secret>`,
  );
  await lab.virsh('secret-define', path);
  const valuePath = lab.path(`${uuid}.base64`);
  writeFileSync(valuePath, base64);
  await lab.virsh('secret-set-value', uuid, '--file', valuePath);
  rmSync(valuePath);
  return uuid;
}

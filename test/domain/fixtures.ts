import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const folder = join(import.meta.dirname, 'xml');

/** The domain XMLs of test/domain/xml, by file name. */
export const domainXmls = new Map(
  readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), 'utf8')] as const),
);

export function domainXml(name: string): string {
  const xml = domainXmls.get(name);
  if (xml === undefined) throw new Error(`no test/domain/xml/${name}`);
  return xml;
}

/** A domain with these disks, and nothing else of note. */
export function domainWith(...devices: string[]): string {
  return `<domain type='kvm'><name>d</name><uuid>0c1d2e3f-0000-4000-8000-000000000001</uuid><memory>1024</memory>
    <os><type arch='x86_64'>hvm</type></os><devices>${devices.join('')}</devices></domain>`;
}

/** Runs commands in a virsh on libvirt's test driver, whose domains exist only in that process; null without a virsh. */
export function virsh(...commands: string[]): { status: number | null; stdout: string; stderr: string } | null {
  const result = spawnSync('virsh', ['-q', '-c', 'test:///default', commands.join(' ; ')], { encoding: 'utf8' });
  return result.error === undefined ? result : null;
}

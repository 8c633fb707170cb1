import { readFileSync } from 'node:fs';
import type { Answers } from '../qmp/fake-qemu.ts';

type Captured = Record<
  'query-status' | 'query-block' | 'query-named-block-nodes' | 'query-block-jobs' | 'x-debug-query-block-graph',
  unknown
>;

/** A graph that QEMU 7.2 described, with a virtio-blk device and the nodes as libvirt and virt-cdp lay them. */
export function captured(name: string): Captured {
  return JSON.parse(readFileSync(new URL(`captured/${name}.json`, import.meta.url), 'utf8')) as Captured;
}

export function answersOf(graph: Captured): Answers {
  return Object.fromEntries(Object.entries(graph).map(([command, answer]) => [command, () => answer]));
}

import { readFile } from 'node:fs/promises';
import { join, posix } from 'node:path';
import type { Image } from '../../domain/image.ts';
import { sameStorage } from '../../storage/image.ts';
import { pathOf, withPath } from '../../storage/path.ts';
import { writeDurably } from '../../store/durable-file.ts';

/** From each path that somebody names an image by to the one that its links lead to, where that is another. */
export type NameTable = ReadonlyMap<string, string>;

/** Whether two images are the same bytes. */
export type Same = (a: Image, b: Image) => boolean;

const fileName = 'real-names.json';

/** What the agent has last learnt, for the hook when the agent is down; nothing if that can't be read. */
export async function readNames(storePath: string): Promise<NameTable> {
  try {
    const names = JSON.parse(await readFile(join(storePath, fileName), 'utf8')) as Record<string, string>;
    return new Map(Object.entries(names));
  } catch {
    return new Map();
  }
}

export async function writeNames(storePath: string, names: NameTable): Promise<void> {
  await writeDurably(join(storePath, fileName), JSON.stringify(Object.fromEntries(names), null, 2) + '\n');
}

/** Takes an image by whatever name for what it is, as far as the table goes. */
export function sameBy(names: NameTable): Same {
  const real = (image: Image): Image => {
    const path = pathOf(image);
    return path === null ? image : withPath(image, realPath(names, path));
  };
  return (a, b) => sameStorage(real(a), real(b));
}

/** All paths by which the table knows this image. */
export function pathsOf(names: NameTable, image: Image): string[] {
  const path = pathOf(image);
  if (path === null) return [];
  const real = realPath(names, path);
  return [...new Set([path, real, ...[...names].flatMap(([name, leadsTo]) => (leadsTo === real ? [name] : []))])];
}

function realPath(names: NameTable, path: string): string {
  const clean = posix.normalize(path);
  return names.get(clean) ?? clean;
}

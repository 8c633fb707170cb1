import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { bashCompletion } from '../src/cli/bash-completion.ts';
import { commands } from '../src/cli/commands.ts';
import { manPages } from './man.ts';

/** The files of this folder that are made from the programs' own tables, by their names. */
export function generatedFiles(): Record<string, string> {
  const shippedConfig = readFileSync(join(import.meta.dirname, 'virt-cdp.toml'), 'utf8');
  const pages = Object.entries(manPages(commands, shippedConfig)).map(([name, text]) => [`man/${name}`, text]);
  return {
    'virt-cdp.bash-completion': bashCompletion(commands),
    ...(Object.fromEntries(pages) as Record<string, string>),
  };
}

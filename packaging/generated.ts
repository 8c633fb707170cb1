import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { bashCompletion } from '../src/cli/bash-completion.ts';
import { commands } from '../src/cli/commands.ts';
import { configurationDocument } from './configuration.ts';
import { manPages } from './man.ts';

/** The files that are made from the programs' own tables, by their paths from this folder. */
export function generatedFiles(): Record<string, string> {
  const shippedConfig = readFileSync(join(import.meta.dirname, 'virt-cdp.toml'), 'utf8');
  const pages = Object.entries(manPages(commands, shippedConfig)).map(([name, text]) => [`man/${name}`, text]);
  return {
    '../docs/configuration.md': configurationDocument(shippedConfig),
    'virt-cdp.bash-completion': bashCompletion(commands),
    ...(Object.fromEntries(pages) as Record<string, string>),
  };
}

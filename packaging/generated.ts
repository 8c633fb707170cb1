import { bashCompletion } from '../src/cli/bash-completion.ts';
import { commands } from '../src/cli/commands.ts';

/** The files of this folder that are made from the programs' own tables, by their names. */
export function generatedFiles(): Record<string, string> {
  return { 'virt-cdp.bash-completion': bashCompletion(commands) };
}

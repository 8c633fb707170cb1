/** `npm run packaging`: writes the files that are made from the programs' own tables. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { generatedFiles } from './generated.ts';

for (const [name, text] of Object.entries(generatedFiles())) writeFileSync(join(import.meta.dirname, name), text);

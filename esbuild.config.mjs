import { readFile, readdir, writeFile } from 'node:fs/promises';
import { build } from 'esbuild';

const programs = {
  'virt-cdpd': 'src/agent/main.ts',
  'virt-cdp': 'src/cli/main.ts',
  'virt-cdp-hook': 'src/hook/main.ts',
};

const { metafile } = await build({
  entryPoints: programs,
  outdir: 'dist',
  bundle: true,
  platform: 'node',
  // Debian 12's own.
  target: 'node18.19',
  format: 'cjs',
  sourcemap: true,
  metafile: true,
  banner: { js: '#!/usr/bin/node' },
  logLevel: 'warning',
  logOverride: { 'empty-import-meta': 'silent' },
});

// The bundles are CommonJS so that they run wherever they are copied; in this checkout the package is an ES module.
await writeFile('dist/package.json', '{ "type": "commonjs" }\n');
await writeFile('dist/licenses.txt', await licensesOf(Object.keys(metafile.inputs)));

/** The licenses of all that is bundled, as each asks to be told. */
async function licensesOf(inputs) {
  const folders = new Set(inputs.flatMap((path) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0] ?? []));
  const texts = await Promise.all(
    [...folders].sort().map(async (folder) => {
      const { name, version, license } = JSON.parse(await readFile(`${folder}/package.json`, 'utf8'));
      const file = (await readdir(folder)).find((one) => /^licen[cs]e/i.test(one));
      const text = file === undefined ? '' : await readFile(`${folder}/${file}`, 'utf8');
      return `${name} ${version} (${license})\n\n${text.trim()}\n`;
    }),
  );
  return texts.join(`\n${'-'.repeat(72)}\n\n`);
}

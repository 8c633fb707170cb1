import { writeFile } from 'node:fs/promises';
import { build } from 'esbuild';

const programs = {
  'virt-cdpd': 'src/agent/main.ts',
  'virt-cdp': 'src/cli/main.ts',
  'virt-cdp-hook': 'src/hook/main.ts',
};

await build({
  entryPoints: programs,
  outdir: 'dist',
  bundle: true,
  platform: 'node',
  target: 'node20',
  format: 'cjs',
  sourcemap: true,
  banner: { js: '#!/usr/bin/env node' },
  logLevel: 'warning',
  logOverride: { 'empty-import-meta': 'silent' },
});

// The bundles are CommonJS so that they run wherever they are copied; in this checkout the package is an ES module.
await writeFile('dist/package.json', '{ "type": "commonjs" }\n');

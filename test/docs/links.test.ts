import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';

const root = join(import.meta.dirname, '../..');
const pages = ['', 'docs', 'docs/decisions', 'packaging'].flatMap((folder) =>
  readdirSync(join(root, folder))
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(folder, name)),
);

/** A heading's anchor, as GitHub and others make it. */
const anchor = (heading: string): string =>
  heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N}_ -]/gu, '')
    .replaceAll(' ', '-');

describe('the links in the documents', () => {
  for (const page of pages) {
    it(`lead somewhere, in ${page}`, () => {
      const text = readFileSync(join(root, page), 'utf8').replaceAll(/^```[^]*?^```/gm, '');
      for (const [link, target = '', name] of text.matchAll(/\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)/g)) {
        const path = target === '' ? join(root, page) : join(root, dirname(page), target);
        assert.ok(existsSync(path), link);
        if (name === undefined || statSync(path).isDirectory()) continue;
        const headings = [...readFileSync(path, 'utf8').matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
          anchor(heading),
        );
        assert.ok(headings.includes(name), link);
      }
    });
  }
});

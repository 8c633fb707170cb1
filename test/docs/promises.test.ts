import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

const page = new URL('../../docs/promises.md', import.meta.url);
const items = readFileSync(page, 'utf8')
  .split('\n')
  .filter((line) => line.startsWith('- ['));

describe('the page of promises', () => {
  it('names tests for each promise', () => assert.ok(items.length >= 7));

  for (const item of items) {
    const [, name = '', path = ''] = /^- \[(.*?)\]\((.*?)\)/.exec(item) ?? [];
    it(`names tests that exist: ${name}`, () => {
      const text = readFileSync(new URL(path, page), 'utf8').replaceAll("\\'", "'");
      for (const [, title = ''] of item.matchAll(/\*([^*]+)\*/g)) assert.ok(text.includes(title), `${path}: ${title}`);
    });
  }
});

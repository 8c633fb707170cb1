import assert from 'node:assert/strict';
import { comparedBlockBytes as block, joined, splitBy } from '../../src/sync/compare.ts';

describe('extents that differ', () => {
  it('are told apart from those that were written to meanwhile, block by block', () => {
    const differing = [{ offset: 0, length: 3 * block }];
    const written = [{ offset: block, length: block }];
    assert.deepEqual(splitBy(differing, written), {
      apart: [
        { offset: 0, length: block },
        { offset: 2 * block, length: block },
      ],
      touched: [{ offset: block, length: block }],
    });
  });

  it('reach to the end of a disk that is no whole number of blocks', () => {
    assert.deepEqual(splitBy([{ offset: block, length: block + 512 }], []).apart, [
      { offset: block, length: block + 512 },
    ]);
  });

  it('are joined in order', () => {
    const a = [{ offset: 0, length: block }];
    const b = [
      { offset: 4 * block, length: block },
      { offset: block, length: block },
    ];
    assert.deepEqual(joined(b, a), [
      { offset: 0, length: 2 * block },
      { offset: 4 * block, length: block },
    ]);
  });
});

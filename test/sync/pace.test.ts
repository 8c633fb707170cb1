import assert from 'node:assert/strict';
import { nextPace, unpaced, type Pace } from '../../src/sync/pace.ts';

const mebibyte = 1024 * 1024;
const calmNs = 2_000_000;
const firstBytesPerS = 64 * mebibyte;

/** A guest that writes 100 times a second, on storage where each write takes `latencyNs(bytesPerS of the sync)`. */
class Beside {
  pace: Pace = unpaced;
  #atMs = 0;
  #writes = 0;
  #waitedNs = 0;
  #syncedBytes: number | null = null;
  #waitForTarget = false;
  readonly #latencyNs: (bytesPerS: number) => number;
  readonly #mostBytesPerS: number;

  constructor(latencyNs: (bytesPerS: number) => number, { mostBytesPerS = 0 } = {}) {
    this.#latencyNs = latencyNs;
    this.#mostBytesPerS = mostBytesPerS;
  }

  /** Seconds go by, a look each; answers how long a write took in each, in the multiple of a calm one. */
  pass(
    seconds: number,
    {
      syncing,
      writesPerS = 100,
      waitForTarget = false,
    }: { syncing: boolean; writesPerS?: number; waitForTarget?: boolean },
  ): number[] {
    this.#waitForTarget = waitForTarget;
    const ratios: number[] = [];
    if (!syncing) this.#syncedBytes = null;
    else if (this.#syncedBytes === null) {
      this.#syncedBytes = 0;
      this.#look();
    }
    for (let second = 0; second < seconds; second++) {
      const speed = syncing ? Math.min(this.pace.bytesPerS, 2000 * mebibyte) : 0;
      const latencyNs = this.#latencyNs(speed);
      ratios.push(latencyNs / calmNs);
      this.#atMs += 1000;
      this.#writes += writesPerS;
      this.#waitedNs += writesPerS * latencyNs;
      if (this.#syncedBytes !== null) this.#syncedBytes += speed;
      this.#look();
    }
    return ratios;
  }

  #look(): void {
    const [atMs, writes, waitedNs, syncedBytes] = [this.#atMs, this.#writes, this.#waitedNs, this.#syncedBytes];
    const seen = { atMs, writes, waitedNs, syncedBytes, waitForTarget: this.#waitForTarget };
    this.pace = nextPace(this.pace, seen, this.#mostBytesPerS);
  }
}

/** Each 100 MiB/s of a sync make a write as much longer as a calm one takes. */
const shared = (bytesPerS: number): number => calmNs * (1 + bytesPerS / (100 * mebibyte));
const apart = (): number => calmNs;

describe('the pace of a sync', () => {
  it('keeps the latency of the guest below twice what it was', () => {
    const beside = new Beside(shared);
    beside.pass(5, { syncing: false });
    const ratios = beside.pass(120, { syncing: true });
    assert.ok(ratios.filter((ratio) => ratio > 2).length <= 1, ratios.join(' '));
    assert.ok(beside.pace.bytesPerS > 20 * mebibyte, `it crawls at ${beside.pace.bytesPerS} bytes a second`);
  });

  it('goes on from one sync to the next as it was', () => {
    const beside = new Beside(shared);
    beside.pass(5, { syncing: false });
    beside.pass(30, { syncing: true });
    beside.pass(0, { syncing: false });
    const ratios = beside.pass(30, { syncing: true });
    assert.deepEqual(
      ratios.filter((ratio) => ratio > 2),
      [],
    );
  });

  it('begins fast beside a guest that writes next to nothing, as far as the administrator allows', () => {
    const beside = new Beside(apart, { mostBytesPerS: 2000 * mebibyte });
    beside.pass(5, { syncing: false, writesPerS: 0 });
    assert.equal(beside.pace.bytesPerS, 2000 * mebibyte);
  });

  it('begins carefully beside a guest that nothing is known of, and takes what it sees then for calm', () => {
    const beside = new Beside(shared);
    const ratios = beside.pass(60, { syncing: true });
    assert.ok(Math.max(...ratios) < 4, ratios.join(' '));
    assert.ok(beside.pace.bytesPerS < 200 * mebibyte, `${beside.pace.bytesPerS}`);
  });

  it('does not crawl because each write waits for the target too, which is not its own doing, but for what it does besides', () => {
    const beside = new Beside((bytesPerS) => (bytesPerS > 0 ? 2 * calmNs + shared(bytesPerS) : calmNs));
    beside.pass(5, { syncing: false });
    const ratios = beside.pass(120, { syncing: true, waitForTarget: true });
    assert.ok(beside.pace.bytesPerS > firstBytesPerS, `${beside.pace.bytesPerS}`);
    assert.ok(ratios.filter((ratio) => ratio > 7).length <= 1, ratios.join(' '));
  });

  it('does not crawl because more and more writes wait for the target, the more is copied', () => {
    let load = 1;
    const beside = new Beside(() => calmNs * load);
    beside.pass(5, { syncing: false });
    for (; load < 2.5; load += 0.1) beside.pass(1, { syncing: true, waitForTarget: true });
    beside.pass(60, { syncing: true, waitForTarget: true });
    assert.ok(beside.pace.bytesPerS > 4 * firstBytesPerS, `${beside.pace.bytesPerS}`);
  });

  it('does not crawl either where nobody saw such a sync begin', () => {
    const beside = new Beside((bytesPerS) => (bytesPerS > 0 ? 4 * calmNs : calmNs));
    const seen = { atMs: 0, writes: 1000, waitedNs: 1000 * calmNs, syncedBytes: 0, waitForTarget: true };
    beside.pace = nextPace(unpaced, seen, 0);
    assert.equal(beside.pace.calmNs, null);
  });

  it('is not taken for harmless because the guest waits so long for each write that there are few', () => {
    const beside = new Beside((bytesPerS) => (bytesPerS > 0 ? 100 * calmNs : calmNs));
    beside.pass(5, { syncing: false });
    beside.pass(30, { syncing: true, writesPerS: 3 });
    assert.equal(beside.pace.bytesPerS, 8 * mebibyte);
  });

  it('slows down for a moment to see what a write takes beside such a sync, where it began fast', () => {
    const beside = new Beside((bytesPerS) => (bytesPerS > 0 ? 2 * calmNs + shared(bytesPerS) : calmNs));
    beside.pass(5, { syncing: false, writesPerS: 0 });
    beside.pass(1, { syncing: true, waitForTarget: true });
    assert.equal(beside.pace.bytesPerS, firstBytesPerS);
  });

  it('grows where it slows nobody', () => {
    const beside = new Beside(apart);
    beside.pass(5, { syncing: false });
    beside.pass(6, { syncing: true });
    assert.ok(beside.pace.bytesPerS > 1000 * mebibyte);
  });

  it('never falls so low that the sync would not end', () => {
    const beside = new Beside((bytesPerS) => (bytesPerS > 0 ? 50 * calmNs : calmNs));
    beside.pass(5, { syncing: false });
    beside.pass(60, { syncing: true });
    assert.equal(beside.pace.bytesPerS, 8 * mebibyte);
  });

  it('recovers when what slowed the guest is gone', () => {
    let load = 30;
    const beside = new Beside(() => calmNs * load);
    load = 1;
    beside.pass(5, { syncing: false });
    load = 30;
    beside.pass(10, { syncing: true });
    assert.equal(beside.pace.bytesPerS, 8 * mebibyte);
    load = 1;
    beside.pass(60, { syncing: true });
    assert.ok(beside.pace.bytesPerS > 200 * mebibyte, `${beside.pace.bytesPerS} after a minute`);
  });

  it('is not held down by a guest that does not write', () => {
    const beside = new Beside(shared);
    beside.pass(5, { syncing: false });
    beside.pass(30, { syncing: true, writesPerS: 0 });
    assert.ok(beside.pace.bytesPerS > 1000 * mebibyte);
  });

  it('is never above what the administrator allows, from one look to the next, even below the least', () => {
    const beside = new Beside(apart, { mostBytesPerS: mebibyte });
    beside.pass(5, { syncing: false });
    beside.pass(10, { syncing: true });
    assert.equal(beside.pace.bytesPerS, mebibyte);
    const { pace } = beside;
    const seen = { atMs: 0, writes: 0, waitedNs: 0, syncedBytes: 0, waitForTarget: false };
    assert.equal(nextPace({ ...pace, bytesPerS: 64 * mebibyte }, seen, 2 * mebibyte).bytesPerS, 2 * mebibyte);
  });

  it('measures a later sync against the time before it, not against the sync before', () => {
    const beside = new Beside(shared);
    beside.pass(5, { syncing: false });
    beside.pass(30, { syncing: true });
    beside.pass(2, { syncing: false });
    assert.ok(Math.abs((beside.pace.calmNs ?? 0) - calmNs) < calmNs * 0.05, `${beside.pace.calmNs ?? 0}`);
  });
});

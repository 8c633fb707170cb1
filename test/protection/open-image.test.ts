import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openImage } from '../../src/protection/open-image.ts';
import type { LiveDomain } from '../../src/protection/live-domain.ts';
import { Monitor } from '../../src/qmp/monitor.ts';
import { parseImageUri } from '../../src/storage/image.ts';
import { ImageOpener } from '../../src/storage/opener.ts';

describe('an NBD export over TCP', () => {
  it('is not opened while a connection of former days still has something to send', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'virt-cdp-'));
    const path = process.env['PATH'];
    const shown = 'FIN-WAIT-1 0 4096 192.0.2.1:40000 192.0.2.2:10809';
    await writeFile(join(folder, 'ss'), `#!/bin/sh\n[ "$1" = -K ] || echo '${shown}'\n`, { mode: 0o755 });
    process.env['PATH'] = `${folder}:${path}`;
    const asked: string[] = [];
    const send = (request: string): Promise<string> => {
      asked.push(request);
      return Promise.resolve('{"return": {}}');
    };
    const opener = ImageOpener.of(() => assert.fail('no secret is needed'), (() => ({
      mirror: { timeoutMs: 1000 },
      socket: folder,
    })) as never);
    const live = {
      monitor: new Monitor({ send, onEvent: () => () => undefined }),
      recipient: { libvirtSocket: '', domainId: 1 },
    };
    try {
      await assert.rejects(
        openImage(
          { live: live as unknown as LiveDomain, opener, probeDeadlineMs: 1000 },
          parseImageUri('nbd://192.0.2.2/web1'),
          {
            storageNode: 'storage',
            formatNode: 'format',
          },
        ),
        { code: 'old-connection' },
      );
      assert.deepEqual(asked, []);
    } finally {
      process.env['PATH'] = path;
      await rm(folder, { recursive: true });
    }
  });
});

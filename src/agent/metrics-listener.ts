import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { CdpError, errorText } from '../errors.ts';
import type { Log } from '../log.ts';

/**
 * Serves `GET /metrics`, and nothing else, on a TCP address: whoever reaches it can read the names of domains and how their disks are.
 * @throws CdpError `cannot-listen`
 */
export async function listenForScrapes(
  { host, port }: { host: string; port: number },
  metrics: () => Promise<{ contentType: string; text: string }>,
  log: Log,
): Promise<{ port: number; close: () => Promise<void> }> {
  const server = createServer({ requestTimeout: 10_000, headersTimeout: 10_000 }, (request, response) => {
    request.resume();
    if (request.method !== 'GET' || request.url !== '/metrics') {
      response.writeHead(404).end('there is nothing but GET /metrics\n');
      return;
    }
    metrics().then(
      ({ contentType, text }) => response.writeHead(200, { 'content-type': contentType }).end(text),
      (error: unknown) => {
        log.error('the metrics could not be told', { error: errorText(error) });
        response.writeHead(500).end();
      },
    );
  });
  server.maxConnections = 16;
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) => {
      const hint = 'choose another address with the configuration key metrics.listen';
      reject(new CdpError({ code: 'cannot-listen', message: `cannot listen on ${host}:${port}`, hint, cause }));
    });
    server.listen(port, host, resolve);
  });
  server.on('error', (error) => log.error('metrics socket failed', { error: error.message }));
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

import assert from 'node:assert/strict';
import { connect } from 'node:net';
import fc from 'fast-check';
import { actionArgumentsSchemas, errorAnswerSchema } from '../../src/control/schema.ts';
import { FakeAgent, domainWith } from './fake-agent.ts';

/** Whatever a stranger sends, the server answers 2xx, or 4xx with the documented body, and goes on serving. */
describe('hostile input', () => {
  let agent: FakeAgent;
  before(async () => {
    agent = await new FakeAgent().start();
    agent.statuses.set('web1', domainWith());
  });
  after(() => agent.stop());

  const actions = fc.constantFrom(...Object.keys(actionArgumentsSchemas));
  const keys = ['disk', 'mirror', 'mirrorXml', 'policy', 'create', 'keep', 'to', 'toXml', 'full', '__proto__', 'x'];
  const looksLikeArguments = fc.dictionary(fc.constantFrom(...keys), fc.oneof(fc.jsonValue(), fc.string()));
  const bodies = fc.oneof(
    fc.json(),
    looksLikeArguments.map((value) => JSON.stringify(value)),
    fc.string({ unit: 'binary' }),
  );
  const paths = fc.oneof(
    actions.map((action) => `/v1/domains/web1/${action}`),
    fc.webPath(),
    fc.webPath().map((path) => `/v1${path}`),
    fc.constantFrom(
      '/v1/hook/prepare',
      '/v1/domains',
      '/v1/version',
      '/v1/events?follow=0',
      '*',
      '//',
      '/v1/domains/%',
    ),
  );

  it('as requests gets an answer of the documented form', async () => {
    await fc.assert(
      fc.asyncProperty(fc.constantFrom('GET', 'POST', 'PUT', 'DELETE'), paths, bodies, async (method, path, body) => {
        const bytes = Buffer.from(body);
        const head = `${method} ${path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: ${bytes.length}\r\n\r\n`;
        checkAnswer(await exchange(agent.socketPath, Buffer.concat([Buffer.from(head), bytes])));
      }),
      { numRuns: 400 },
    );
    assert.equal(await agent.client.version(), '1.2.3');
    assert.deepEqual(agent.logged, []);
  });

  it('as bytes gets an answer, or nothing', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => {
        const answer = await exchange(agent.socketPath, Buffer.concat([bytes, Buffer.from('\r\n\r\n\r\n')]), true);
        if (answer !== '') checkAnswer(answer);
      }),
      { numRuns: 200 },
    );
    assert.equal(await agent.client.version(), '1.2.3');
  });
});

function checkAnswer(text: string): void {
  const status = Number(/^HTTP\/1.1 (\d{3}) /.exec(text)?.[1]);
  if (status === 200) return;
  assert(status >= 400 && status < 500, text);
  errorAnswerSchema.parse(JSON.parse(text.slice(text.indexOf('\r\n\r\n'))));
}

/** `end` also closes our side, for what the server may take for the beginning of something longer. */
function exchange(socketPath: string, bytes: Buffer, end = false): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath, () => (end ? socket.end(bytes) : socket.write(bytes)));
    let text = '';
    socket.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
    socket.on('error', reject).on('close', () => resolve(text));
  });
}

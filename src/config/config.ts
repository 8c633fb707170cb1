import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { parse } from 'smol-toml';
import { z } from 'zod';
import { errorText, UsageError } from '../errors.ts';

export const defaultConfigPath = '/etc/virt-cdp/virt-cdp.toml';

export interface Config {
  /** libvirt's unix socket. */
  libvirt: { socket: string };
  /** The folder of the durable records; must not lie on protected storage. */
  store: string;
  /** The folder of the policy files. */
  policyDir: string;
  /** The agent's own unix socket. */
  socket: string;
  /** Whose members may use the socket, besides root. */
  socketGroup: string | null;
  log: { level: 'error' | 'warn' | 'info' | 'debug' };
  /** What writes to both copies: the best that QEMU and the disk allow, or mirror jobs in any case. */
  engine: 'auto' | 'mirror';
  /** How long an `available` domain may wait for its mirror. */
  mirror: { timeoutMs: number };
  /** The folder of the certificates for NBD servers with TLS; null for the one that libvirt's qemu.conf names. */
  nbd: { tlsCertDir: string | null };
  /** How long a hook's question may take. */
  hook: { deadlineMs: number };
  /** 0 is unlimited. */
  resync: { maxBytesPerS: number };
  /** Libvirt could not start a domain for want of its primary: start it from its mirror, or leave it off. */
  start: { afterDamage: 'mirror' | 'refuse' };
  /** A guest waits for a copy that hangs, and QEMU can't let go of it: wait too, or kill QEMU and start from the other copy. */
  onHang: 'wait' | 'restart';
  /** Begin a rebuild without being asked, where the declaration says nothing of it. */
  rebuild: { auto: boolean };
  /** A TCP address at which Prometheus finds the metrics, besides the agent's own socket. */
  metrics: { listen: { host: string; port: number } | null };
  /** Who is told of changes of state: a program by its arguments, a server by its URL. */
  notify: { exec: [string, ...string[]] | null; webhook: string | null; deadlineMs: number };
  /** The folder in which a verify keeps what the guest overwrites meanwhile. */
  verify: { scratch: string };
}

const path = z.string().regex(/^\/[^\0]*$/, 'must be an absolute path');

const millisecondsUpTo = (most: number): z.ZodNumber => z.number().int().min(1).max(most);

/** `HOST:PORT`, an IPv6 address in brackets. */
const address = z
  .string()
  .regex(/^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):\d{1,5}$/, 'must be HOST:PORT')
  .transform((text) => {
    const [, host = '', port] = /^(.*):(\d+)$/.exec(text) ?? [];
    return { host: host.replace(/^\[|\]$/g, ''), port: Number(port) };
  })
  .refine(({ port }) => port <= 65535, 'must have a port up to 65535');

const fileSchema = z.strictObject({
  libvirt: z.strictObject({ socket: path.optional() }).default({}),
  store: path.default('/var/lib/virt-cdp'),
  policy_dir: path.optional(),
  socket: path.default('/run/virt-cdp/virt-cdp.sock'),
  socket_group: z
    .string()
    .regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$/, "must be a group's name")
    .optional(),
  log: z.strictObject({ level: z.enum(['error', 'warn', 'info', 'debug']).default('info') }).prefault({}),
  engine: z.enum(['auto', 'mirror']).default('auto'),
  mirror: z.strictObject({ timeout_ms: millisecondsUpTo(600_000).default(5000) }).prefault({}),
  nbd: z.strictObject({ tls_x509_cert_dir: path.nullable().default(null) }).prefault({}),
  // A hook holds libvirt's lock of the domain, and listing all domains waits for it: never longer than a second.
  hook: z.strictObject({ deadline_ms: millisecondsUpTo(1000).default(1000) }).prefault({}),
  resync: z.strictObject({ max_bytes_per_s: z.number().int().min(0).default(0) }).prefault({}),
  start: z.strictObject({ after_damage: z.enum(['mirror', 'refuse']).default('mirror') }).prefault({}),
  on_hang: z.enum(['wait', 'restart']).default('wait'),
  rebuild: z.strictObject({ auto: z.boolean().default(false) }).prefault({}),
  metrics: z.strictObject({ listen: address.optional() }).default({}),
  notify: z
    .strictObject({
      exec: z.tuple([path], z.string().regex(/^[^\0]*$/, 'must have no zero byte')).optional(),
      webhook: z.url({ protocol: /^https?$/ }).optional(),
      deadline_ms: millisecondsUpTo(600_000).default(10_000),
    })
    .prefault({}),
  verify: z.strictObject({ scratch: path.default('/var/tmp') }).prefault({}),
});

/** `folder` is the configuration file's, below which the policy files are unless they are elsewhere. */
const schemaIn = (folder: string): z.ZodType<Config> =>
  fileSchema.transform(
    ({
      libvirt,
      store,
      policy_dir,
      socket,
      socket_group,
      log,
      engine,
      mirror,
      nbd,
      hook,
      resync,
      start,
      on_hang,
      rebuild,
      metrics,
      notify,
      verify,
    }): Config => ({
      libvirt: { socket: libvirt.socket ?? defaultLibvirtSocket() },
      store,
      policyDir: policy_dir ?? join(folder, 'policy.d'),
      socket,
      socketGroup: socket_group ?? null,
      log,
      engine,
      mirror: { timeoutMs: mirror.timeout_ms },
      nbd: { tlsCertDir: nbd.tls_x509_cert_dir },
      hook: { deadlineMs: hook.deadline_ms },
      resync: { maxBytesPerS: resync.max_bytes_per_s },
      start: { afterDamage: start.after_damage },
      onHang: on_hang,
      rebuild,
      metrics: { listen: metrics.listen ?? null },
      notify: { exec: notify.exec ?? null, webhook: notify.webhook ?? null, deadlineMs: notify.deadline_ms },
      verify,
    }),
  );

/** The modular daemon's socket if this host has it, else the monolithic daemon's (libvirt's docs/daemons). */
function defaultLibvirtSocket(): string {
  const modular = '/run/libvirt/virtqemud-sock';
  return existsSync(modular) ? modular : '/run/libvirt/libvirt-sock';
}

/**
 * Reads the text of a configuration; `name` is its file's path.
 * @throws UsageError `config-invalid`, with a line for each key that is wrong.
 */
export function parseConfig(toml: string, name: string): Config {
  let document: unknown;
  try {
    document = parse(toml);
  } catch (error) {
    throw invalid(name, errorText(error), error);
  }
  const outcome = schemaIn(dirname(resolve(name))).safeParse(document);
  if (outcome.success) return outcome.data;
  throw invalid(name, z.prettifyError(outcome.error), outcome.error);
}

/**
 * Reads the configuration file. Without a file at the default path the defaults hold; a path given explicitly must exist.
 * @throws UsageError `config-missing`, `config-unreadable`, `config-invalid`.
 */
export async function loadConfig(file: string = defaultConfigPath): Promise<Config> {
  let toml: string;
  try {
    toml = await readFile(file, 'utf8');
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    if (missing && file === defaultConfigPath) return parseConfig('', file);
    throw new UsageError({
      code: missing ? 'config-missing' : 'config-unreadable',
      message: `the configuration ${file} could not be read: ${missing ? 'there is no such file' : errorText(error)}`,
      hint: missing ? `name another file, or leave it out for ${defaultConfigPath}` : 'see its permissions',
      cause: error,
    });
  }
  return parseConfig(toml, file);
}

function invalid(name: string, why: string, cause: unknown): UsageError {
  return new UsageError({
    code: 'config-invalid',
    message: `the configuration ${name} is invalid:\n${why.trim()}`,
    hint: 'correct it, and check it with virt-cdpd --check',
    cause,
  });
}

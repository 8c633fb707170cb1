import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { defaultConfigPath, loadConfig, type Config } from '../config/config.ts';
import { watchConfig } from '../config/watch.ts';
import type { AgentReport } from '../control/api.ts';
import { startServer } from '../control/server.ts';
import { version } from '../control/version.ts';
import { CdpError, errorText } from '../errors.ts';
import { LibvirtSession } from '../libvirt/session.ts';
import { createLog, type Log } from '../log.ts';
import { AutoRebuild } from '../protection/requests/auto-rebuild.ts';
import { Host } from '../protection/host.ts';
import type { ProtectionEvent } from '../protection/model.ts';
import { rebuild } from '../protection/requests/moves.ts';
import { restartAfterHang } from '../protection/requests/restart-after-hang.ts';
import { startAfterDamage } from '../protection/requests/start-after-damage.ts';
import { domainRecordSchema } from '../protection/record.ts';
import { PolicyFolder } from '../protection/rules/policy-folder.ts';
import { RuleKeeper } from '../protection/rules/rule-keeper.ts';
import type { Step } from '../protection/steps.ts';
import { EventLog } from '../store/event-log.ts';
import { RecordStore } from '../store/record-store.ts';
import { agentApi } from './api.ts';
import { listenForScrapes } from './metrics-listener.ts';
import { Notifier } from './notify.ts';
import { tellServiceManager } from './service-manager.ts';

const usage = 'usage: virt-cdpd [--config FILE] [--check] [--version]';

/** virt-cdpd: runs in the foreground until SIGTERM or SIGINT. Guests stay as they are, protected or not, when it ends. */
async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      config: { type: 'string', default: defaultConfigPath },
      check: { type: 'boolean', default: false },
      version: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help || values.version) {
    process.stdout.write(values.help ? `${usage}\n` : `${version}\n`);
    return 0;
  }
  const config = await loadConfig(values.config);
  if (values.check) return check(values.config, config);
  await runUntilSignal(values.config, config);
  return 0;
}

async function check(configPath: string, config: Config): Promise<number> {
  const policies = new PolicyFolder(config.policyDir);
  await policies.read();
  process.stdout.write(`${configPath}: valid\n`);
  for (const { file, problem } of policies.files) process.stdout.write(`${problem ?? `${file}: valid`}\n`);
  return policies.files.some(({ problem }) => problem !== null) ? 1 : 0;
}

async function runUntilSignal(configPath: string, initial: Config): Promise<void> {
  const startedAt = new Date().toISOString();
  let config = initial;
  let configProblem: string | null = null;
  const log = createLog(config.log.level);
  const unwatch = await watchConfig(configPath, {
    onChange: (changed) => {
      config = changed;
      configProblem = null;
      log.level = changed.log.level;
      log.info('configuration reloaded', { path: configPath });
    },
    onBroken: (error) => {
      configProblem = error.message;
      log.error('configuration not reloaded; the former one holds', { error: error.message });
    },
  });
  const policies = new PolicyFolder(config.policyDir);
  await policies.read();
  reportPolicies(policies, log);
  const session = LibvirtSession.start({
    socketPath: config.libvirt.socket,
    log: (message, detail) => log.info(message, withErrorText(detail)),
  });
  const autoRebuild = new AutoRebuild((protector, dev) => rebuild(protector, { disk: dev }, host));
  const host: Host = new Host({
    session,
    store: await RecordStore.open(config.store, domainRecordSchema),
    events: new EventLog<ProtectionEvent>(config.store),
    log,
    config: () => config,
    shown: (protector) => autoRebuild.consider(protector, config.rebuild.auto),
    seen: (ref) => rules.consider(ref),
    startFailed: (protector, start) => startAfterDamage(protector, start, host),
    helpless: (protector, dev, side) => restartAfterHang(protector, dev, side, host),
    afterStep: dieAfterSteps(process.env['VIRT_CDP_TEST_DIE_AFTER_STEPS']),
  });
  const rules: RuleKeeper = new RuleKeeper(host, (domain) => policies.ruleFor(domain));
  const unwatchPolicies = await policies.watch(() => {
    reportPolicies(policies, log);
    rules.considerAll().catch((error: unknown) => log.warn('the rules wait for libvirt', { error: errorText(error) }));
  });
  await host.start();
  const report = (): AgentReport => ({
    version,
    node: process.versions.node,
    pid: process.pid,
    startedAt,
    configPath: resolve(configPath),
    configProblem,
    store: initial.store,
    libvirtConnected: session.state === 'connected',
  });
  const api = agentApi(host, policies, rules, report);
  const { listen } = initial.metrics;
  const scrapes = listen === null ? null : await listenForScrapes(listen, () => api.metrics(), log);
  const notifier = new Notifier(() => config.notify, log);
  const unfollow = host.events.follow((event) => notifier.tell(event));
  const server = await startServer({ socketPath: config.socket, group: config.socketGroup, api, log, version });
  log.info('virt-cdpd is up', { version, socket: config.socket, libvirt: config.libvirt.socket });
  const unwatched = await tellServiceManager(process.env, (error) =>
    log.warn('systemd could not be told that the agent lives', { error: errorText(error) }),
  );
  const signal = await nextSignal();
  unwatched();
  log.info('virt-cdpd ends; guests stay as they are', { signal });
  await server.close();
  await scrapes?.close();
  unfollow();
  notifier.close();
  rules.close();
  await host.close();
  await host.events.written();
  await session.close();
  await unwatch();
  await unwatchPolicies();
}

function reportPolicies({ files }: PolicyFolder, log: Log): void {
  for (const { file, problem } of files)
    if (problem !== null) log.error('a policy file is not used; what it said before holds', { file, error: problem });
  log.info('policy files read', { files: files.map(({ file }) => file) });
}

/** For tests of recovery: the agent ends as by a power cut after its n-th step, or after the first of a name. */
function dieAfterSteps(last: string | undefined): (step: Step) => void {
  let count = 0;
  return ({ step }) => {
    count += 1;
    if (last === step || last === String(count)) process.kill(process.pid, 'SIGKILL');
  };
}

function nextSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => resolve(signal));
  });
}

function withErrorText(detail: Record<string, unknown>): Record<string, unknown> {
  return 'error' in detail ? { ...detail, error: errorText(detail['error']) } : detail;
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    const hint = error instanceof CdpError && error.hint !== undefined ? `\nhint: ${error.hint}` : '';
    process.stderr.write(`virt-cdpd: ${errorText(error)}${hint}\n`);
    process.exitCode = 1;
  },
);

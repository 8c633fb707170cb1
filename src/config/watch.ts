import { dirname, resolve } from 'node:path';
import { watch } from 'chokidar';
import { CdpError, errorText } from '../errors.ts';
import { loadConfig, type Config } from './config.ts';

export interface ConfigListener {
  onChange(config: Config): void;
  /** The file changed and can't be used: whoever listens goes on with the configuration it has, and says so. */
  onBroken(error: CdpError): void;
}

/**
 * Reads the file again whenever it is written, replaced or removed. It is the folder that is watched, since editors
 * replace files; it must exist (else nothing is seen) and lie on a local file system. The promise is kept once changes are seen.
 * @returns what ends the watching.
 */
export async function watchConfig(file: string, listener: ConfigListener): Promise<() => Promise<void>> {
  const path = resolve(file);
  const folder = dirname(path);
  const watcher = watch(folder, {
    depth: 0,
    ignoreInitial: true,
    ignored: (candidate) => candidate !== folder && candidate !== path,
    awaitWriteFinish: { stabilityThreshold: 100, pollInterval: 20 },
  });
  // INVARIANT: readings are told in the order of the changes; none is told after the watching ended.
  let reading = Promise.resolve();
  let ended = false;
  const reread = async (): Promise<void> => {
    const outcome = await loadConfig(path).catch(asCdpError);
    if (ended) return;
    if (outcome instanceof CdpError) listener.onBroken(outcome);
    else listener.onChange(outcome);
  };
  const changed = (): void => {
    reading = reading.then(reread);
  };
  watcher.on('add', changed).on('change', changed).on('unlink', changed);
  watcher.on('error', (error) => listener.onBroken(asCdpError(error)));
  await new Promise<void>((ready) => watcher.once('ready', ready));
  return async () => {
    ended = true;
    await watcher.close();
    await reading;
  };
}

function asCdpError(error: unknown): CdpError {
  if (error instanceof CdpError) return error;
  return new CdpError({
    code: 'config-unreadable',
    message: `the configuration could not be read: ${errorText(error)}`,
  });
}

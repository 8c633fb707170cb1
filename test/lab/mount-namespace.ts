import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { within } from './wait.ts';

/** Shows the folder `source` at the path `target`, in the namespace only. */
export interface Bind {
  source: string;
  target: string;
}

/**
 * Arguments: the scratch folder, then source and target by turns. Lives while its stdin is open; then it kills whoever else
 * is in its namespace, until nobody is left, and removes the scratch folder. A target that the packages have not made yet
 * (/run/libvirt before libvirt's first start) is made, empty, and stays: removing it could pull it from under another lab.
 */
const holder = `
scratch=$1; shift
while [ $# -gt 0 ]; do
  mkdir -p "$2" && mount --bind "$1" "$2" || exit 1
  shift 2
done
echo ready
read -r _
own=$(readlink /proc/$$/ns/mnt | tr '[]' '??')
for round in 1 2 3 4 5 6 7 8 9 10; do
  others=
  for process in $(find /proc/[0-9]*/ns/mnt -maxdepth 0 -lname "$own" 2>/dev/null); do
    pid=\${process#/proc/}; pid=\${pid%%/*}
    [ "$pid" = $$ ] || { kill -KILL "$pid" 2>/dev/null && others=yes; }
  done
  [ "$others" ] || break
  sleep 0.1
done
# One that has made a namespace of its own of this one is known by the pid file it left here.
for file in "$scratch"/run/qemu/*.pid; do
  [ -e "$file" ] || continue
  read -r pid <"$file"
  name=\${file##*/}
  grep -aqsF "guest=\${name%.pid}," "/proc/$pid/cmdline" && kill -KILL "$pid"
done
rm -rf "$scratch"
`;

/**
 * A mount namespace of one's own, kept by a holder process. It ends with everything in it when closed, or when the
 * process that made it dies, however it dies: the holder then sees the end of its stdin.
 */
export class MountNamespace {
  readonly #holder: ChildProcess;

  private constructor(holding: ChildProcess) {
    this.#holder = holding;
  }

  /** `scratch` is removed, with all in it, when the namespace ends. */
  static async create(scratch: string, binds: readonly Bind[]): Promise<MountNamespace> {
    const paths = binds.flatMap((bind) => [bind.source, bind.target]);
    // A session of its own: the terminal's ^C must not end the one who cleans up.
    const holding = spawn(
      'unshare',
      ['--mount', '--propagation', 'private', 'sh', '-c', holder, 'sh', scratch, ...paths],
      { stdio: ['pipe', 'pipe', 'pipe'], detached: true, cwd: '/' },
    );
    const { stdin, stdout, stderr } = holding;
    stdin.on('error', () => undefined);
    let complaint = '';
    stderr.on('data', (text: Buffer) => (complaint += text.toString()));
    const ready = Promise.race([
      once(stdout, 'data'),
      once(holding, 'exit').then(() => {
        throw new Error(`no mount namespace: ${complaint}`);
      }),
    ]);
    try {
      await within('a mount namespace', ready, 10_000, () => complaint);
    } catch (error) {
      stdin.end();
      throw error;
    }
    for (const handle of [holding, stdin, stdout, stderr]) (handle as { unref?: () => void }).unref?.();
    return new MountNamespace(holding);
  }

  /** The command line that runs a program inside; the process started keeps its pid. */
  command(program: string, ...args: string[]): [string, ...string[]] {
    return ['nsenter', `--mount=/proc/${this.#holder.pid ?? 0}/ns/mnt`, '--', program, ...args];
  }

  /** Kills every process inside, and returns when the namespace and the scratch folder are gone. */
  async close(): Promise<void> {
    if (this.#holder.exitCode !== null || this.#holder.signalCode !== null) return;
    const ended = once(this.#holder, 'exit');
    this.#holder.ref();
    this.#holder.stdin?.end();
    await within('the end of the mount namespace', ended, 20_000);
  }
}

/**
 * The QMP commands that are used, with what they take and what of their answer is read. Source of the shapes: QEMU's
 * qapi/block-core.json, qapi/job.json and qapi/run-state.json, 7.2 to 10.0.
 */
export interface QmpCommands {
  stop: Call<NoArguments>;
  cont: Call<NoArguments>;
  'query-status': Call<NoArguments, { running: boolean; status: RunState }>;
  /** Also of a save, which is a migration into a file; without a status if there was none. */
  'query-migrate': Call<NoArguments, { status?: string }>;
  'query-block': Call<NoArguments, BlockDevice[]>;
  'query-named-block-nodes': Call<{ flat: boolean }, BlockNode[]>;
  'x-debug-query-block-graph': Call<NoArguments, BlockGraph>;
  'query-block-jobs': Call<NoArguments, BlockJob[]>;
  'query-iothreads': Call<NoArguments, { id: string }[]>;
  /** Of devices; of all nodes with `query-nodes`. */
  'query-blockstats': Call<{ 'query-nodes'?: true }, BlockStats[]>;
  'blockdev-add': Call<BlockdevOptions>;
  'blockdev-del': Call<{ 'node-name': string }>;
  'remove-fd': Call<{ 'fdset-id': number }>;
  closefd: Call<{ fdname: string }>;
  'block-dirty-bitmap-add': Call<{ node: string; name: string; granularity: number; persistent?: boolean }>;
  'block-dirty-bitmap-remove': Call<BitmapName>;
  'block-dirty-bitmap-merge': Call<{ node: string; target: string; bitmaps: BitmapName[] }>;
  'blockdev-mirror': Call<{
    'job-id': string;
    device: string;
    target: string;
    sync: 'full' | 'none';
    'copy-mode': 'background' | 'write-blocking';
    'buf-size'?: number;
    'filter-node-name': string;
    /** The default is to end the job. */
    'on-source-error'?: 'stop';
    'on-target-error'?: 'stop';
    speed: number;
  }>;
  'blockdev-backup': Call<
    {
      'job-id': string;
      device: string;
      target: string;
      'filter-node-name': string;
      speed: number;
    } & (
      | { sync: 'bitmap'; bitmap: string; 'bitmap-mode': 'on-success' }
      /** Stays among the jobs when it has ended, until it is dismissed. */
      | { sync: 'full'; 'auto-dismiss': false }
    )
  >;
  /** All or none, at one instant: the nodes that are named are drained meanwhile. */
  transaction: Call<{ actions: TransactionAction[] }>;
  /** There is one server for all exports of a QEMU. */
  'nbd-server-start': Call<{ addr: { type: 'unix'; data: { path: string } } }>;
  /** Ends every export of the server. */
  'nbd-server-stop': Call<NoArguments>;
  'block-export-add': Call<{
    type: 'nbd';
    id: string;
    name: string;
    'node-name': string;
    writable: false;
    bitmaps: string[];
  }>;
  'block-job-cancel': Call<{ device: string; force: boolean }>;
  'block-job-complete': Call<{ device: string }>;
  'job-dismiss': Call<{ id: string }>;
  'block-job-set-speed': Call<{ device: string; speed: number }>;
  'query-version': Call<NoArguments, { qemu: { major: number; minor: number; micro: number } }>;
  'qom-get': Call<{ path: string; property: string }>;
  'object-add': Call<{ 'qom-type': 'secret' | 'tls-creds-x509'; id: string } & Record<string, string | boolean>>;
  'object-del': Call<{ id: string }>;
  /** Fails a node's requests at once and for good, and waits for nothing. */
  yank: Call<{ instances: YankInstance[] }>;
  'query-yank': Call<NoArguments, YankInstance[]>;
  /** The virtio devices. These three are marked unstable; they exist since QEMU 7.2. */
  'x-query-virtio': Call<NoArguments, { name: string; path: string }[]>;
  'x-query-virtio-status': Call<{ path: string }, { 'num-vqs': number }>;
  /** `inuse`: requests that the device has taken and not given back; `used-idx` counts those that it has. */
  'x-query-virtio-queue-status': Call<{ path: string; queue: number }, { inuse: number; 'used-idx': number }>;
  'qom-set': Call<{ path: string; property: 'drive'; value: string }>;
  'human-monitor-command': Call<{ 'command-line': string }, string>;
}

export type TransactionAction =
  | { type: 'block-dirty-bitmap-add'; data: { node: string; name: string; granularity: number } }
  | { type: 'block-dirty-bitmap-disable'; data: BitmapName }
  | {
      type: 'blockdev-backup';
      data: { 'job-id': string; device: string; target: string; 'filter-node-name': string; sync: 'none' };
    };

/** A command that takes `Arguments` and answers `Result`; most answer an empty object, which nobody reads. */
interface Call<Arguments, Result = unknown> {
  arguments: Arguments;
  result: Result;
}

type NoArguments = object;

export type CommandName = keyof QmpCommands;

/** qapi/run-state.json: RunState, in the values that are told apart. */
export type RunState = 'running' | 'paused' | 'io-error' | 'prelaunch' | 'shutdown' | 'inmigrate' | (string & {});

export interface BlockDevice {
  device: string;
  qdev?: string;
  'io-status'?: 'ok' | 'failed' | 'nospace';
  inserted?: Partial<BlockNode> & Pick<BlockNode, 'image'>;
}

export interface BlockNode {
  'node-name'?: string;
  drv: string;
  file: string;
  image: { 'virtual-size': number };
  'dirty-bitmaps'?: DirtyBitmap[];
}

export interface DirtyBitmap {
  name?: string;
  /** Dirty bytes. */
  count: number;
  granularity: number;
  recording: boolean;
  busy: boolean;
  persistent: boolean;
  inconsistent?: boolean;
}

/** qapi/yank.json: YankInstance, of those that are block nodes. */
export interface YankInstance {
  type: 'block-node' | (string & {});
  'node-name'?: string;
}

export interface BitmapName {
  node: string;
  name: string;
}

/** Nodes, block backends and block jobs with the edges between them; the command is marked unstable but is unchanged since QEMU 4.0. */
export interface BlockGraph {
  nodes: { id: number; type: 'block-driver' | 'block-backend' | 'block-job'; name: string }[];
  edges: { parent: number; child: number; name: string }[];
}

export interface BlockJob {
  device: string;
  type: string;
  /** Bytes done, in-flight writes included. */
  offset: number;
  /** Bytes in all. */
  len: number;
  ready: boolean;
  /** Bytes per second; 0 is unlimited. */
  speed: number;
  /** qapi/job.json: JobStatus; `concluded` has ended, well unless there is an `error`. */
  status: string;
  paused: boolean;
  error?: string;
  'io-status': 'ok' | 'failed' | 'nospace';
  /** Of a write-blocking mirror, from QEMU 8.2: the target has all that the source has. */
  'actively-synced'?: boolean;
}

export interface BlockStats {
  'node-name'?: string;
  qdev?: string;
  stats: {
    wr_operations: number;
    /** What all writes took together; nanoseconds. */
    wr_total_time_ns: number;
    flush_operations: number;
    unmap_operations: number;
    wr_highest_offset: number;
    failed_wr_operations: number;
    failed_flush_operations: number;
  };
}

export interface BlockdevOptions {
  driver: string;
  'node-name': string;
  [option: string]: unknown;
}

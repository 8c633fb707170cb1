import { runTool } from '../../storage/run-tool.ts';
import type { Check } from '../check.ts';
import { ok, trouble, type Remark } from '../finding.ts';
import { storeOf } from '../host-view.ts';

/** A file system, as df has it. */
interface FileSystem {
  /** E.g. `/dev/sda1`. */
  source: string;
  /** E.g. `ext4`. */
  type: string;
  mount: string;
}

interface Facts {
  path: string;
  problems: string[];
  on: FileSystem | null;
  /** The copies that are files or devices of this host; where a server's socket lies says nothing of its storage. */
  copies: { what: string; path: string; on: FileSystem | null }[];
}

const deadlineMs = 5_000;

const volatile = ['tmpfs', 'ramfs'];
const remote = ['nfs', 'nfs4', 'cifs', 'smb3', 'ceph', 'glusterfs', 'fuse.glusterfs', 'fuse.sshfs', 'afs', 'lustre'];

const authority = 'the records say which copies are current';

/** Whether the records can be read, and outlive what they speak of. */
export const storeCheck: Check<Facts> = {
  name: 'store',
  async gather(host) {
    const { disks, recordProblems } = host;
    const store = storeOf(host);
    const copies = disks.flatMap(({ domain, record }) =>
      (['primary', 'mirror'] as const).flatMap((side) => {
        const { source } = record[side].image;
        return 'path' in source ? { what: `the ${side} of ${domain} ${record.dev}`, path: source.path } : [];
      }),
    );
    return {
      path: store,
      problems: recordProblems,
      on: await fileSystemOf(store),
      copies: await Promise.all(copies.map(async (copy) => ({ ...copy, on: await fileSystemOf(copy.path) }))),
    };
  },
  examine: ({ path, problems, on, copies }) => {
    const remarks: Remark[] = problems.map((problem) =>
      trouble('error', problem, authority, 'run this as root; a broken record is to be restored, not guessed'),
    );
    const elsewhere = 'name another folder with the key store, move the files there, then: systemctl restart virt-cdpd';
    if (on === null) {
      remarks.push(trouble('unknown', `the file system of the store ${path} is not known`, authority, `df ${path}`));
    } else {
      if (volatile.includes(on.type)) {
        const why = `${authority}; after a reboot they would be gone`;
        remarks.push(trouble('error', `the store ${path} is in memory (${on.type})`, why, elsewhere));
      }
      if (remote.includes(on.type)) {
        const why = 'while its server does not answer nothing can be recorded, and no domain be moved in time';
        remarks.push(trouble('error', `the store ${path} is on the network (${on.type})`, why, elsewhere));
      }
      for (const { what, path: copy, on: under } of copies) {
        if (copy !== on.source && (under?.source !== on.source || under.mount !== on.mount)) continue;
        const why = 'when that storage fails, it can not be recorded which copy is current';
        remarks.push(trouble('warning', `the store ${path} is on the same storage as ${what}`, why, elsewhere));
      }
    }
    return remarks.length > 0 ? remarks : [ok(`the store ${path} can be read, and lies on storage of its own`)];
  },
};

/** Null if it is not there, or does not answer. */
async function fileSystemOf(path: string): Promise<FileSystem | null> {
  const columns = '--output=source,fstype,target';
  const { status, stdout } = await runTool('df', [columns, '--', path], { deadlineMs });
  const [source, type, mount] = (stdout.trim().split('\n')[1] ?? '').split(/\s+/);
  return status !== 0 || source === undefined || type === undefined || mount === undefined
    ? null
    : { source, type, mount };
}

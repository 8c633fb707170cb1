import type { Image } from '../domain/image.ts';
import type { Log } from '../log.ts';
import type { EventLog } from '../store/event-log.ts';
import type { RecordStore } from '../store/record-store.ts';
import type { ImageOpener } from '../storage/opener.ts';
import type { Scratch } from '../storage/scratch.ts';
import type { ProtectionEvent } from './model.ts';
import type { SyncSettings } from './observe.ts';
import type { Protector } from './protector.ts';
import type { DomainRecordSchema } from './record.ts';
import type { Relays } from './relays/relays.ts';
import type { Step } from './steps.ts';

/** What all protectors of a host share. */
export interface Shared {
  store: RecordStore<DomainRecordSchema>;
  events: EventLog<ProtectionEvent>;
  log: Log;
  settings: () => SyncSettings;
  probeDeadlineMs: () => number;
  scratchOf: (uuid: string) => Scratch;
  opener: ImageOpener;
  relays: Relays;
  /** A domain's record changed, not necessarily in a pause. */
  recordChanged: () => void;
  /** A domain's states were looked at and shown. */
  shown: (protector: Protector) => void;
  /** These files of a domain are to be watched, instead of those before. */
  watchFiles: (uuid: string, paths: string[]) => void;
  /** These images of a domain are open in its QEMU, instead of those before. */
  watchCopies: (uuid: string, images: Image[]) => void;
  /** Called after each step; tests end the agent here. */
  afterStep: (step: Step) => void;
  /** A disk is no longer protected: puts its former error policies back and takes the declaration away. */
  undeclare: (uuid: string, dev: string) => Promise<void>;
}

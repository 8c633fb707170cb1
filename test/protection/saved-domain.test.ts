import assert from 'node:assert/strict';
import { CdpError } from '../../src/errors.ts';
import { domainRunState, pausedReason } from '../../src/libvirt/constants.ts';
import { ConnectionLostError, LibvirtError } from '../../src/libvirt/errors.ts';
import { stoppedReason } from '../../src/protection/at-stop.ts';
import type { Host } from '../../src/protection/host.ts';
import type { Protector } from '../../src/protection/protector.ts';
import type { DomainRecord } from '../../src/protection/record.ts';
import { saveAndRestore } from '../../src/protection/requests/save-restore.ts';
import { settleRestore } from '../../src/protection/saved-domain.ts';
import { look, record } from './observations.ts';

/** What a power cut makes of libvirt's folder, if that was not flushed: as it was last, as it was before, or without the file. */
type Unflushed = 'new' | 'old' | 'gone';

/** Who dies, and when in the call. */
type Death = 'agent' | 'libvirtd' | 'host';
type Moment = 'before' | 'within' | 'after';

class AgentDied extends Error {}

interface SaveFile {
  memory: number;
  whole: boolean;
}

interface Qemu {
  /** How much the guest has written, as it remembers it. */
  memory: number;
  state: 'running' | 'suspended' | 'saving' | 'restored';
}

/**
 * One domain on one host: its QEMU, its disk, libvirt's managed save with what of it is durable, and the agent's record. Each call
 * and each write of the record is an instant at which somebody may die.
 */
class SavedWorld {
  qemu: Qemu | null = { memory: 0, state: 'running' };
  disk = 0;
  save: SaveFile | null = null;
  /** As it was before its folder was last changed: what a power cut may leave of it, unless that was flushed. */
  durableSave: SaveFile | null = null;
  flushed = true;
  record: DomainRecord;
  durableRecord: DomainRecord;
  events: string[] = [];
  /** The power was cut, and with it went what the guest had in its memory. */
  powerCut = false;
  instants = 0;
  readonly at: number;
  readonly death: Death;
  readonly moment: Moment;
  agentAlive = true;

  constructor(at: number, death: Death, moment: Moment, suspended: boolean) {
    [this.at, this.death, this.moment] = [at, death, moment];
    this.durableRecord = this.record = { ...look().record, disks: [{ ...record.onlyPrimary, state: 'waiting' }] };
    this.write();
    if (suspended && this.qemu !== null) this.qemu.state = 'suspended';
  }

  /** The guest goes on for a while. */
  write(): void {
    if (this.qemu?.state !== 'running') return;
    this.qemu.memory += 1;
    this.disk = this.qemu.memory;
  }

  cutPower(): void {
    this.qemu = null;
    this.powerCut = true;
    this.agentAlive = false;
  }

  /** The host is up again; of what was not flushed, all is there or nothing. */
  comeUp(unflushed: Unflushed): void {
    if (unflushed === 'old' || this.flushed) this.save = this.durableSave;
    if (unflushed === 'gone' && !this.flushed) this.save = null;
    this.restartAgent();
  }

  /** libvirt is done with a save whose agent died. */
  endSave(): void {
    if (this.qemu?.state !== 'saving') return;
    this.save = this.durableSave = { memory: this.qemu.memory, whole: true };
    this.qemu = null;
  }

  restartAgent(): void {
    this.record = this.durableRecord;
    this.agentAlive = true;
  }

  /** `half` is what is there in the middle of it. A call that libvirt was sent is carried out though its agent died. */
  async call<T>(effect: () => T, half: () => void = () => undefined): Promise<T> {
    if (!this.agentAlive) throw new AgentDied();
    const dies = this.instants++ === this.at;
    await Promise.resolve();
    if (!dies) return effect();
    if (this.moment === 'within') half();
    if (this.moment === 'after') effect();
    if (this.death === 'host') this.cutPower();
    if (this.death === 'libvirtd') throw new ConnectionLostError('libvirtd died', { sent: true });
    this.agentAlive = false;
    throw new AgentDied();
  }

  restore(): void {
    if (this.qemu !== null) throw refused('domain is already running');
    if (this.save === null) throw new Error('the guest would be booted, its memory forgotten');
    if (!this.save.whole) throw refused('save image is incomplete');
    assert.equal(this.save.memory, this.disk, 'the guest goes on with a memory that its disk does not fit');
    this.qemu = { memory: this.save.memory, state: 'restored' };
  }

  /** By `virsh start`, and by a start of the host: libvirt boots a domain whose save is no whole one. */
  virshStart(): void {
    if (this.save?.whole === true) {
      this.restore();
      if (this.qemu !== null) this.qemu.state = 'running';
    } else this.qemu ??= { memory: this.disk, state: 'running' };
    this.removeSave();
  }

  readonly client = {
    lookupByUuid: (uuid: string) => this.call(() => ({ name: 'web1', uuid, id: this.qemu === null ? -1 : 7 })),
    domainXml: () => this.call(() => domainXml),
    hasJob: () => this.call(() => false),
    qemuMonitorCommand: () => this.call(() => '{"return":{}}'),
    state: () =>
      this.call(() => {
        const { running, paused, shutoff } = domainRunState;
        if (this.qemu === null) return { state: shutoff, reason: 0 };
        const { user, save, migration } = pausedReason;
        return {
          running: { state: running, reason: 0 },
          suspended: { state: paused, reason: user },
          saving: { state: paused, reason: save },
          restored: { state: paused, reason: migration },
        }[this.qemu.state];
      }),
    managedSave: () =>
      this.call(
        () => {
          if (this.qemu === null) throw refused('domain is not running');
          this.qemu.state = 'saving';
          this.endSave();
          this.flushed = false;
        },
        () => {
          if (this.qemu === null) return;
          // libvirtd, started again, lets the guest go on, and leaves the file.
          if (this.death === 'agent') this.qemu.state = 'saving';
          else this.save = { memory: this.qemu.memory, whole: false };
        },
      ),
    hasManagedSave: () => this.call(() => this.save !== null),
    managedSaveRemove: () => this.call(() => this.removeSave()),
    managedSaveXml: () =>
      this.call(() => {
        if (this.save?.whole !== true) throw refused('save image is incomplete');
        return domainXml;
      }),
    managedSaveDefineXml: () => this.call(() => undefined),
    create: (_ref: unknown, { paused }: { paused?: boolean }) =>
      this.call(
        () => {
          this.restore();
          if (paused !== true && this.qemu !== null) this.qemu.state = 'running';
          this.removeSave();
        },
        // The file goes last.
        () => {
          this.restore();
          if (paused !== true && this.qemu !== null) this.qemu.state = 'running';
          this.write();
          if (this.death === 'agent') this.removeSave();
        },
      ),
    resume: () =>
      this.call(() => {
        if (this.qemu === null) throw refused('domain is not running');
        this.qemu.state = 'running';
      }),
  };

  readonly flush = (): Promise<null> =>
    this.call(() => {
      this.durableSave = this.save;
      this.flushed = true;
    }).then(() => null);

  removeSave(): void {
    this.save = null;
    this.flushed = false;
  }

  get protector(): Protector {
    const changeable = {
      record: this.record,
      change: async (work: (record: DomainRecord) => Promise<{ record: DomainRecord; result: unknown }>) => {
        const { record: changed, result } = await work(this.record);
        await this.call(() => (this.durableRecord = changed));
        this.record = changed;
        return result;
      },
      note: (event: string) => this.events.push(event),
      looked: () => Promise.resolve(),
    };
    return changeable as unknown as Protector;
  }

  get host(): Host {
    return {
      session: { client: this.client },
      protectors: () => [this.protector],
      begin: () => Promise.resolve(),
    } as unknown as Host;
  }

  /** As the agent does when it, or libvirt, is new, and at each change of the domain's state. */
  async settle(): Promise<void> {
    await settleRestore(this.client as never, this.protector, this.flush);
  }
}

const domainXml = `<domain type='kvm'><name>web1</name><uuid>${look().record.uuid}</uuid><memory unit='KiB'>1024</memory><devices>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/primary/vda'/><target dev='vda' bus='virtio'/></disk>
</devices></domain>`;

function refused(text: string): LibvirtError {
  return new LibvirtError('fake', { code: 1, domain: 10, level: 2, text });
}

/** What the administrator asked for; whoever is to die does so. Answers whether all went well. */
async function ask(world: SavedWorld): Promise<boolean> {
  try {
    await saveAndRestore(world.host, world.protector, { name: 'web1', uuid: world.record.uuid, id: 7 }, world.flush);
    return true;
  } catch (error) {
    if (error instanceof AgentDied || error instanceof ConnectionLostError || error instanceof CdpError) return false;
    throw error;
  }
}

/** Who lives on or comes next has done what there is to do. */
function assertWell(world: SavedWorld, suspended: boolean): void {
  const { qemu, save, disk, powerCut, record: settled } = world;
  if (qemu !== null) {
    assert.equal(qemu.memory, disk);
    assert.ok(suspended ? ['suspended', 'restored'].includes(qemu.state) : qemu.state === 'running', qemu.state);
    assert.equal(settled.restoreOwed, null);
    return;
  }
  if (save?.whole === true) {
    assert.match(stoppedReason(settled) ?? '', /virsh start web1/);
    assert.ok(world.events.includes('restore-failed'), 'it is told');
    return;
  }
  assert.ok(powerCut, 'the memory of a guest is lost, and no power cut took it');
  if (settled.restoreOwed !== null) assert.match(stoppedReason(settled) ?? '', /could not go on.*virsh start web1/);
}

describe('a guest that is saved and restored for the stop policy', () => {
  const instants = 40;

  for (const suspended of [false, true]) {
    const who = suspended ? 'suspended' : 'running';

    it(`goes on, ${who}, when nobody dies`, async () => {
      const world = new SavedWorld(-1, 'agent', 'before', suspended);
      assert.ok(await ask(world));
      assert.deepEqual([world.save, world.durableSave, world.flushed], [null, null, true]);
      assertWell(world, suspended);
      assert.ok(world.instants < instants, 'all of its instants are tried');
    });

    for (const death of ['agent', 'libvirtd', 'host'] as const) {
      it(`is not lost, ${who}, when the ${death} dies at any instant, nor goes on with a memory of former days`, async () => {
        let died = 0;
        for (let at = 0; at < instants; at++)
          for (const moment of ['before', 'within', 'after'] as const)
            for (const unflushed of ['new', 'old', 'gone'] as const) {
              const world = new SavedWorld(at, death, moment, suspended);
              if (await ask(world)) continue;
              died += 1;
              try {
                if (death === 'host') world.comeUp(unflushed);
                if (death === 'agent') world.restartAgent();
                world.write();
                await world.settle();
                world.endSave();
                await world.settle();
                world.write();
                assertWell(world, suspended);

                // And then the power is cut: what the guest has written since is on its disk.
                world.write();
                world.cutPower();
                world.comeUp(unflushed);
                await world.settle();
                assertWell(world, suspended);
                if (world.save?.whole === true)
                  assert.equal(world.save.memory, world.disk, 'virsh start would go back');
              } catch (error) {
                throw new Error(`${death} dies ${moment} instant ${at}, libvirt's folder is as ${unflushed}`, {
                  cause: error,
                });
              }
            }
        assert.ok(died > 20, `${died} deaths`);
      });
    }

    it(`goes on, ${who}, when somebody else starts it before its agent is back`, async () => {
      for (let at = 0; at < instants; at++) {
        const world = new SavedWorld(at, 'agent', 'after', suspended);
        if (await ask(world)) continue;
        world.endSave();
        if (world.qemu === null) world.virshStart();
        world.restartAgent();
        world.write();
        await world.settle();
        assert.equal(world.qemu?.memory, world.disk);
        assert.equal(world.record.restoreOwed, null);
      }
    });
  }
});

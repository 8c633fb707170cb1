import { DECLARATION_KEY, DECLARATION_URI, declarationToXml, type Declaration } from '../../domain/declaration.ts';
import { parseDomain, type Domain } from '../../domain/domain.ts';
import { withErrorPolicy, withMetadata, withoutMetadata } from '../../domain/edit.ts';
import { isLibvirtError, libvirtErrorCode } from '../../libvirt/errors.ts';
import type { LibvirtSession } from '../../libvirt/session.ts';
import type { DomainRef } from '../../libvirt/types.ts';
import { syncFolder } from '../../store/durable-file.ts';
import type { DomainRecord } from '../record.ts';
import { compare, type Comparison, type Restoration } from './compare.ts';

/** A domain waits for its definition no longer than this: its protection is more urgent. */
const deadlineMs = 3_000;

export interface Definition {
  ref: DomainRef;
  domain: Domain;
  persistent: boolean;
}

/** Reads and writes what libvirt has of domains besides the running QEMU. */
export class Definitions {
  readonly #session: LibvirtSession;

  constructor(session: LibvirtSession) {
    this.#session = session;
  }

  /** What the next start of the domain uses; of a transient domain, what runs. Null if libvirt knows no such domain. */
  async read(uuid: string): Promise<Definition | null> {
    const { client } = this.#session;
    try {
      const ref = await client.lookupByUuid(uuid, deadlineMs);
      const persistent = await client.isPersistent(ref, deadlineMs);
      const xml = await client.domainXml(ref, { inactive: persistent }, deadlineMs);
      return { ref, domain: parseDomain(xml), persistent };
    } catch (error) {
      if (isLibvirtError(error, libvirtErrorCode.noDomain)) return null;
      throw error;
    }
  }

  async compare(record: DomainRecord, definition: Definition, attached: boolean): Promise<Comparison> {
    const { ref, domain, persistent } = definition;
    if (ref.id < 0) return compare(record, domain, null);
    const live = persistent ? parseDomain(await this.#session.client.domainXml(ref, {}, deadlineMs)) : domain;
    return compare(record, domain, { disks: live.disks, attached });
  }

  /** Puts back what the definition must say. Of a transient domain only the declaration can be changed. */
  async restore({ ref, persistent }: Definition, { declaration, edit }: Restoration): Promise<void> {
    if (persistent) await this.#define(ref, (xml) => edit(declaration === null ? xml : declaring(xml, declaration)));
    else if (declaration !== null) await this.#showDeclaration(ref, declaration);
  }

  /** Writes the declaration into the domain's metadata, and with it what the disks' drivers must say. */
  async write(ref: DomainRef, declaration: Declaration | null, edit: (xml: string) => string): Promise<void> {
    if (await this.#session.client.isPersistent(ref)) {
      await this.#define(ref, (xml) =>
        edit(declaration === null ? withoutMetadata(xml, DECLARATION_URI) : declaring(xml, declaration)),
      );
    }
    if (ref.id >= 0) await this.#showDeclaration(ref, declaration);
  }

  /**
   * Takes a disk out of the declaration, and puts its former error policies back; durably, because with its record gone nobody would
   * know that an older definition, which a power cut brought back, names a stale copy.
   */
  async undeclare(uuid: string, dev: string): Promise<void> {
    const definition = await this.read(uuid);
    if (definition === null) return;
    const { ref, domain } = definition;
    const { declaration } = domain;
    const disks = declaration?.disks.filter((disk) => disk.dev !== dev) ?? [];
    const previous = declaration?.disks.find((disk) => disk.dev === dev)?.previousErrorPolicy;
    const rest = declaration === null || disks.length === 0 ? null : { ...declaration, disks };
    await this.write(ref, rest, (xml) =>
      previous !== undefined && domain.disks.some((disk) => disk.dev === dev)
        ? withErrorPolicy(xml, dev, previous)
        : xml,
    );
    await keepDefinitions();
  }

  /** The XML is read with its secrets, which a definition without them would erase. */
  async #define(ref: DomainRef, edit: (xml: string) => string): Promise<void> {
    const { client } = this.#session;
    const xml = await client.domainXml(ref, { inactive: true, secure: true }, deadlineMs);
    await client.defineXml(edit(xml), deadlineMs);
  }

  async #showDeclaration(ref: DomainRef, declaration: Declaration | null): Promise<void> {
    const xml = declaration === null ? null : declarationToXml(declaration);
    await this.#session.client.setMetadata(
      ref,
      { uri: DECLARATION_URI, key: DECLARATION_KEY, xml, live: true, config: false },
      deadlineMs,
    );
  }
}

/** libvirt fsyncs a definition, but not the folder that gives it its name (util/virfile.c: virFileRewrite). */
async function keepDefinitions(): Promise<void> {
  try {
    await syncFolder('/etc/libvirt/qemu');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
}

function declaring(xml: string, declaration: Declaration): string {
  return withMetadata(xml, DECLARATION_URI, DECLARATION_KEY, declarationToXml(declaration));
}

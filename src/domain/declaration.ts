import { UsageError } from '../errors.ts';
import { imageToDiskXml, readDiskImage } from './disk-image.ts';
import { imageFormats, textProblem, type Image, type ImageFormat } from './image.ts';
import { attributeOf, childrenOf, printXml, readXml, type XmlElement } from './xml.ts';

/** The namespace of the declaration in a domain's `<metadata>`, and the prefix under which libvirt shows it. */
export const DECLARATION_URI = 'https://virt-cdp.org/xmlns/domain/1';
export const DECLARATION_KEY = 'cdp';

export const policies = ['available', 'strict'] as const;

/** What a domain does without its mirror: run on (`available`) or wait (`strict`). */
export type Policy = (typeof policies)[number];

/** What the administrator wants of a domain, as it stands in the domain's metadata. */
export interface Declaration {
  policy: Policy;
  /** At least one, each `dev` once. */
  disks: DeclaredDisk[];
}

export interface DeclaredDisk {
  /** The target's name, e.g. `vda`. */
  dev: string;
  mirror: Image;
  /** Somebody has said that the mirror of this encrypted disk may be in clear. */
  unencryptedMirror?: true;
  rebuild: RebuildPlan | null;
  /** What the disk's `<driver>` said before it was protected, for `unprotect` to put back. */
  previousErrorPolicy?: ErrorPolicies;
}

export interface RebuildPlan {
  /** A path or URI with {domain}, {dev} and {n}. */
  to: string;
  format: ImageFormat;
  /** Begin a rebuild without being asked. */
  auto: boolean;
}

/** `error_policy` and `rerror_policy` of a `<driver>`; null where the attribute is absent. */
export interface ErrorPolicies {
  errorPolicy: string | null;
  readErrorPolicy: string | null;
}

/**
 * The declaration as virDomainSetMetadata takes it with DECLARATION_KEY and DECLARATION_URI, and as
 * virDomainGetMetadata gives it back: without namespace. Libvirt adds the prefix to every element itself, the mirror's
 * `<disk>` included, and fails with "failed to create a new XML namespace" if the prefix is already there
 * (virXMLInjectNamespace in util/virxml.c).
 */
export function declarationToXml(declaration: Declaration): string {
  return printXml('protection', { policy: declaration.policy }, ...declaration.disks.map(printDisk));
}

function printDisk({ dev, mirror, unencryptedMirror, rebuild, previousErrorPolicy: previous }: DeclaredDisk): string {
  const unencrypted = unencryptedMirror === true ? 'yes' : null;
  const parts = [printXml('mirror', { unencrypted }, imageToDiskXml(mirror))];
  if (rebuild !== null) {
    parts.push(printXml('rebuild', { to: rebuild.to, format: rebuild.format, auto: rebuild.auto ? 'yes' : 'no' }));
  }
  if (previous !== undefined) {
    const attributes = { error_policy: previous.errorPolicy, rerror_policy: previous.readErrorPolicy };
    parts.push(printXml('previous', attributes));
  }
  return printXml('disk', { dev }, ...parts);
}

/**
 * Reads a declaration from what virDomainGetMetadata gives, or from the element as it stands in a domain's XML.
 * @throws UsageError `declaration-invalid`, which names what is wrong.
 */
export function declarationFromXml(elementXml: string): Declaration {
  let root: XmlElement;
  try {
    root = readXml(elementXml);
  } catch (error) {
    throw invalid(error instanceof UsageError ? error.message : 'it is not XML', error);
  }
  return declarationFromElement(root);
}

/** @throws UsageError `declaration-invalid`, which names what is wrong. */
export function declarationFromElement(root: XmlElement): Declaration {
  if (root.name !== 'protection' || !['', DECLARATION_URI].includes(root.namespace)) {
    throw invalid(`its root is <${root.name}>, not <protection>`);
  }
  allowOnly(root, ['policy'], ['disk']);
  const disks = childrenOf(root, 'disk').map(readDisk);
  if (disks.length === 0) throw invalid('it names no <disk>');
  const twice = disks.find(({ dev }, index) => disks.findIndex((other) => other.dev === dev) !== index);
  if (twice !== undefined) throw invalid(`it names the disk ${twice.dev} twice`);
  return { policy: choice(root, 'policy', policies, 'available'), disks };
}

function readDisk(element: XmlElement): DeclaredDisk {
  allowOnly(element, ['dev'], ['mirror', 'rebuild', 'previous']);
  const dev = attributeOf(element, 'dev') ?? '';
  if (!/^\w{1,64}$/.test(dev)) throw invalid("a <disk> has no usable dev='...', such as 'vda'");
  const mirror = only(element, 'mirror');
  if (mirror === null) throw invalid(`the disk ${dev} has no <mirror>`);
  const rebuild = only(element, 'rebuild');
  const previous = only(element, 'previous');
  return {
    dev,
    mirror: readMirror(mirror, dev),
    ...(choice(mirror, 'unencrypted', ['yes', 'no'], 'no') === 'yes' && { unencryptedMirror: true }),
    rebuild: rebuild === null ? null : readRebuild(rebuild),
    ...(previous !== null && { previousErrorPolicy: readPrevious(previous) }),
  };
}

/** The `<disk>` may be in libvirt's own (empty) namespace or in the declaration's: libvirt moves it there. */
function readMirror(mirror: XmlElement, dev: string): Image {
  allowOnly(mirror, ['unencrypted'], ['disk']);
  const [disk, ...others] = mirror.children;
  if (disk === undefined || others.length > 0) throw invalid(`the <mirror> of ${dev} does not hold exactly one <disk>`);
  const outcome = readDiskImage(disk);
  if ('unsupported' in outcome) throw invalid(`the mirror of ${dev} can't be used: ${outcome.unsupported}`);
  return outcome.image;
}

function readRebuild(rebuild: XmlElement): RebuildPlan {
  allowOnly(rebuild, ['to', 'format', 'auto'], []);
  const to = attributeOf(rebuild, 'to') ?? '';
  if (to === '') throw invalid("a <rebuild> has no to='...'");
  const problem = textProblem(to);
  if (problem !== null) throw invalid(`the place to rebuild to is unusable: ${problem}`);
  return {
    to,
    format: choice(rebuild, 'format', imageFormats, 'qcow2'),
    auto: choice(rebuild, 'auto', ['yes', 'no'], 'no') === 'yes',
  };
}

/** Libvirt's values of error_policy, and the subset that rerror_policy has (domaincommon.rng). */
const errorPolicies = ['stop', 'report', 'ignore', 'enospace'] as const;
const readErrorPolicies = ['stop', 'report', 'ignore'] as const;

function readPrevious(previous: XmlElement): ErrorPolicies {
  allowOnly(previous, ['error_policy', 'rerror_policy'], []);
  return {
    errorPolicy: choice(previous, 'error_policy', errorPolicies, null),
    readErrorPolicy: choice(previous, 'rerror_policy', readErrorPolicies, null),
  };
}

function only(parent: XmlElement, name: string): XmlElement | null {
  const [first, ...others] = childrenOf(parent, name);
  if (others.length > 0) throw invalid(`a <${parent.name}> has more than one <${name}>`);
  return first ?? null;
}

function choice<T extends string, D extends T | null>(
  element: XmlElement,
  attribute: string,
  values: readonly T[],
  otherwise: D,
): T | D {
  const value = attributeOf(element, attribute);
  if (value === null) return otherwise;
  const known = values.find((candidate) => candidate === value);
  if (known === undefined) throw invalid(`${attribute}='${value}' is not one of ${values.join(', ')}`);
  return known;
}

function allowOnly(element: XmlElement, attributes: string[], children: string[]): void {
  for (const name of element.attributes.keys()) {
    if (!attributes.includes(name)) throw invalid(`<${element.name}> has an unknown attribute '${name}'`);
  }
  for (const child of element.children) {
    const ownElement = child.namespace === element.namespace || child.namespace === '';
    if (!ownElement || !children.includes(child.name)) {
      throw invalid(`<${element.name}> has an unknown element <${child.name}>`);
    }
  }
}

function invalid(why: string, cause?: unknown): UsageError {
  return new UsageError({
    code: 'declaration-invalid',
    message: `the declaration of protection is invalid: ${why}`,
    hint: `correct the ${DECLARATION_KEY}:protection element with virsh edit, or declare again with virt-cdp protect`,
    cause,
  });
}

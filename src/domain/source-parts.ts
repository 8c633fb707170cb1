import { hostProblem, pathProblem } from './image.ts';
import { attributeOf, type XmlElement } from './xml.ts';

/** Why a `<disk>` can't be dealt with, as a sentence. */
export class Unsupported extends Error {}

/** @throws Unsupported */
export function pathFrom(element: XmlElement, attribute: string): string {
  const path = attributeOf(element, attribute);
  if (path === null || path === '') throw new Unsupported('it has no source');
  const problem = pathProblem(path);
  if (problem !== null) throw new Unsupported(`its path '${path}' is unusable: ${problem}`);
  return path;
}

/** The name of a `<host>`. @throws Unsupported */
export function serverName(host: XmlElement): string {
  const name = attributeOf(host, 'name') ?? '';
  const problem = hostProblem(name);
  if (problem !== null) throw new Unsupported(`its server '${name}' is unusable: ${problem}`);
  return name;
}

import { UsageError } from '../errors.ts';

/** What the kinds of storage have in common in their URIs. */

export function badUri(uri: string, why: string, hint: string): UsageError {
  return new UsageError({ code: 'image-uri-invalid', message: `'${uri}' can't be an image: ${why}`, hint });
}

/** Undoes percent-encoding. */
export function decoded(uri: string, text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw badUri(uri, 'a % in it does not begin an encoded character', 'write a plain % as %25');
  }
}

/** Percent-encodes all but slashes. */
export function encodedPath(path: string): string {
  return path.split('/').map(encodeURIComponent).join('/');
}

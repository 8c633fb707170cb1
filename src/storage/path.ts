import type { Image } from '../domain/image.ts';

/** The path of a file, a device or a unix socket; null for what has none on this host. */
export function pathOf({ source }: Image): string | null {
  if ('path' in source) return source.path;
  return 'server' in source && 'socket' in source.server ? source.server.socket : null;
}

/** The same image by another path; an image without one stays as it is. */
export function withPath(image: Image, path: string): Image {
  const { source } = image;
  if ('path' in source) return { ...image, source: { ...source, path } };
  if ('server' in source && 'socket' in source.server)
    return { ...image, source: { ...source, server: { socket: path } } };
  return image;
}

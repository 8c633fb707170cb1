import { readFileSync } from 'node:fs';

/**
 * Where the file system of a path is mounted, by the kernel's table, which is read without touching that file system. A link in
 * the path is not followed.
 */
export function mountPointOf(path: string): string {
  const points = readFileSync('/proc/self/mountinfo', 'utf8').split('\n').map(mountPoint);
  const holding = points.filter((point) => path === point || path.startsWith(point === '/' ? '/' : `${point}/`));
  return holding.reduce((longest, point) => (point.length > longest.length ? point : longest), '/');
}

/** The fifth field of a line (proc(5)); spaces and the like are written as octal numbers. */
function mountPoint(line: string): string {
  const field = line.split(' ')[4] ?? '/';
  return field.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));
}

import { parse } from 'smol-toml';
import { z } from 'zod';
import { policies, type Policy } from '../../domain/declaration.ts';
import type { Image } from '../../domain/image.ts';
import { errorText, UsageError } from '../../errors.ts';
import { parseImageUri } from '../../storage/image.ts';

/** One policy file: which domains are protected by it, and how. */
export interface PolicyRule {
  /** The file's path. */
  file: string;
  /** Patterns of names, in which * stands for any text and ? for one character. */
  domains: string[];
  /** The disks' targets; null: every disk that can be protected. */
  disks: string[] | null;
  /** A path or URI with {domain} and {dev}; null only if no disk is to be protected. */
  mirror: string | null;
  policy: Policy;
  /** A mirror that is not there is created. */
  create: boolean;
  rebuild: { to: string; auto: boolean } | null;
}

const schema = z
  .strictObject({
    domains: z.array(z.string().min(1)).min(1),
    disks: z.array(z.string().regex(/^\w{1,64}$/, "must be a disk's target, such as vda")).optional(),
    mirror: z.string().optional(),
    policy: z.enum(policies).default('available'),
    create: z.boolean().default(false),
    rebuild: z.strictObject({ to: z.string().min(1), auto: z.boolean().default(false) }).optional(),
  })
  .superRefine(({ disks, mirror, create, rebuild }, context) => {
    const complain = (path: string[], message: string): void => context.addIssue({ code: 'custom', path, message });
    if (rebuild !== undefined)
      placeholders(rebuild.to, ['domain', 'dev', 'n'], (why) => complain(['rebuild', 'to'], why));
    if (mirror === undefined) {
      if (disks?.length !== 0) complain(['mirror'], 'is missing');
      return;
    }
    placeholders(mirror, ['domain', 'dev'], (why) => complain(['mirror'], why));
    try {
      const { kind } = mirrorOf(mirror, 'web1', 'vda').source;
      if (create && kind !== 'file') complain(['create'], 'only mirrors that are files can be created');
    } catch (error) {
      complain(['mirror'], errorText(error));
    }
  });

/**
 * Reads the text of a policy file; `file` is what errors call it.
 * @throws UsageError `policy-invalid`, with a line for each key that is wrong.
 */
export function parsePolicy(toml: string, file: string): PolicyRule {
  let document: unknown;
  try {
    document = parse(toml);
  } catch (error) {
    throw invalid(file, errorText(error), error);
  }
  const outcome = schema.safeParse(document);
  if (!outcome.success) throw invalid(file, z.prettifyError(outcome.error), outcome.error);
  const { domains, disks, mirror, policy, create, rebuild } = outcome.data;
  return { file, domains, disks: disks ?? null, mirror: mirror ?? null, policy, create, rebuild: rebuild ?? null };
}

/** The first rule whose patterns fit the domain's name. */
export function ruleFor(rules: PolicyRule[], domain: string): PolicyRule | null {
  return rules.find(({ domains }) => domains.some((pattern) => matches(pattern, domain))) ?? null;
}

/**
 * The mirror that a template names. In a URI the domain's name is percent-encoded.
 * @throws UsageError `image-uri-invalid`.
 */
export function mirrorOf(template: string, domain: string, dev: string): Image {
  for (const name of [domain, dev])
    if (name === '.' || name === '..' || name.includes('/')) {
      const message = `'${name}' can't stand in the name of a mirror: it leads to another folder`;
      throw new UsageError({ code: 'image-uri-invalid', message, hint: 'declare this domain: virt-cdp protect' });
    }
  const name = template.startsWith('/') ? domain : encodeURIComponent(domain);
  return parseImageUri(template.replaceAll('{domain}', () => name).replaceAll('{dev}', dev));
}

/** In time that grows with the product of the lengths, whatever the pattern: a regular expression may take for ever. */
function matches(pattern: string, name: string): boolean {
  const characters = Array.from(name);
  // Which beginnings of the name, by their length, fit the pattern so far.
  let fits = [true, ...characters.map(() => false)];
  for (const one of pattern) {
    let any = false;
    fits = fits.map((fit, length) => {
      any ||= fit;
      if (one === '*') return any;
      return length > 0 && fits[length - 1] === true && (one === '?' || one === characters[length - 1]);
    });
  }
  return fits.at(-1) === true;
}

function placeholders(template: string, known: string[], complain: (why: string) => void): void {
  for (const [whole, name = ''] of template.matchAll(/\{([^{}]*)\}/g)) {
    if (!known.includes(name)) complain(`has ${whole}; what can stand there is {${known.join('}, {')}}`);
  }
}

function invalid(file: string, why: string, cause: unknown): UsageError {
  return new UsageError({
    code: 'policy-invalid',
    message: `the policy file ${file} is invalid:\n${why.trim()}`,
    hint: 'correct it; virt-cdpd --check tells whether it is right',
    cause,
  });
}

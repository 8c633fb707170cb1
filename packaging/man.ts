import { dashed, type Command } from '../src/cli/command.ts';
import { version } from '../src/control/version.ts';
import { configurationEntries } from './configuration.ts';

/** Manual pages in roff (man(7)), from the same tables as the help, and from the configuration file that is shipped. */
export function manPages(commands: readonly Command[], shippedConfig: string): Record<string, string> {
  return {
    'virt-cdp.1': commandPage(commands),
    'virt-cdpd.8': agentPage,
    'virt-cdp.toml.5': configurationPage(shippedConfig),
    'virt-cdp-hook.8': hookPage,
  };
}

/** Text as it is: no character has a meaning to roff. */
function plain(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll('ü', '\\(:u')
    .replaceAll(/^([.'])/gm, '\\&$1');
}

const bold = (text: string): string => `\\fB${plain(text)}\\fP`;
const italic = (text: string): string => `\\fI${plain(text)}\\fP`;

function page(name: string, section: number, summary: string, ...parts: string[]): string {
  const head = `.TH ${plain(name.toUpperCase())} ${section} "" "virt\\-cdp ${version}"`;
  return [head, '.SH NAME', `${plain(name)} \\- ${plain(summary)}`, ...parts, ''].join('\n');
}

/** Paragraphs, each a line of source. */
function paragraphs(...texts: string[]): string {
  return texts.map(plain).join('\n.PP\n');
}

function tagged(tag: string, text: string): string {
  return `.TP\n${tag}\n${plain(text)}`;
}

const exits = [
  ['0', 'done'],
  ['1', 'failed; the message says what, why and what to do'],
  ['2', 'used wrongly'],
  ['3', "the agent can't be reached"],
  ['4', 'refused for safety; the hint names the flag that would do it all the same'],
  ['10, 11', 'status --check only: degraded, broken'],
] as const;

function commandPage(commands: readonly Command[]): string {
  return page(
    'virt-cdp',
    1,
    "keeps a second, current copy of a domain's disks",
    '.SH SYNOPSIS',
    `${bold('virt-cdp')} [${bold('--socket')} ${italic('PATH')}] [${bold('--json')}] [${italic('COMMAND')} ...]`,
    '.SH DESCRIPTION',
    paragraphs(
      "virt-cdp speaks to virt-cdpd(8). Without a command it is an interactive shell, with virsh's quoting, or does the commands of its input. A DOMAIN is a name, UUID or id, as in virsh.",
    ),
    '.SH OPTIONS',
    tagged(
      `${bold('--socket')} ${italic('PATH')}`,
      "the agent's socket; default VIRT_CDP_SOCKET, or /run/virt-cdp/virt-cdp.sock",
    ),
    tagged(bold('--json'), 'results and errors as JSON on stdout'),
    tagged(`${bold('--help')}, ${bold('--version')}`, 'tell about a command, or the version'),
    '.SH COMMANDS',
    ...commands.map(commandSection),
    '.SH EXIT STATUS',
    ...exits.map(([code, meaning]) => tagged(plain(code), meaning)),
    '.SH SEE ALSO',
    'virsh(1), virt\\-cdp.toml(5), virt\\-cdpd(8), virt\\-cdp\\-hook(8)',
  );
}

function commandSection({ name, summary, description, domain, options }: Command): string {
  const argument = { required: ` ${italic('DOMAIN')}`, optional: ` [${italic('DOMAIN')}]`, none: '' }[domain];
  const text = [summary, description].filter(Boolean).join('. ');
  const positionals = Object.values(options).filter(({ positional }) => positional);
  const specs = Object.entries(options).map(([key, { value, summary: about, choices, positional }]) =>
    tagged(
      [positional ? [] : bold(dashed(key)), value === undefined ? [] : italic(value)].flat().join(' '),
      choices === undefined ? about : `${about} (${choices.join(', ')})`,
    ),
  );
  const others = positionals.map(({ value }) => ` ${italic(value ?? '')}`).join('');
  return [`.SS ${bold(name)}${argument}${others}`, plain(text), ...specs].join('\n');
}

const agentPage = page(
  'virt-cdpd',
  8,
  'the agent of virt-cdp, one for each host',
  '.SH SYNOPSIS',
  `${bold('virt-cdpd')} [${bold('--config')} ${italic('FILE')}] [${bold('--check')}] [${bold('--version')}]`,
  '.SH DESCRIPTION',
  paragraphs(
    'virt-cdpd runs in the foreground until SIGTERM or SIGINT, and does whatever is done to the disks of protected domains. Guests stay as they are when it ends, protected or not; but then a copy that fails leaves its guest paused until the agent is back.',
    'It reads its configuration, and the policy files, again whenever they change. A file that is wrong leaves in force what was read before.',
  ),
  '.SH OPTIONS',
  tagged(`${bold('--config')} ${italic('FILE')}`, 'the configuration; default /etc/virt-cdp/virt-cdp.toml'),
  tagged(bold('--check'), 'says whether the configuration and the policy files are right, and ends'),
  '.SH FILES',
  tagged(plain('/var/lib/virt-cdp'), 'the durable records, which say which copies are current'),
  tagged(plain('/run/virt-cdp/virt-cdp.sock'), 'its socket'),
  '.SH SEE ALSO',
  'virt\\-cdp(1), virt\\-cdp.toml(5), virt\\-cdp\\-hook(8)',
);

function configurationPage(shipped: string): string {
  const entries = configurationEntries(shipped).flatMap(({ keys, text }) => [
    ...keys.map((key, index) => `.${index === 0 ? 'TP' : 'TQ'}\n${bold(key)}`),
    plain(text),
  ]);
  return page(
    'virt-cdp.toml',
    5,
    'the configuration of virt-cdp',
    '.SH DESCRIPTION',
    paragraphs(
      '/etc/virt-cdp/virt-cdp.toml is TOML. Every key may be left out. What is shown is the default, or an example where the text says so. A key that is not known is an error; virt-cdpd --check tells of it.',
    ),
    '.SH KEYS',
    ...entries,
    '.SH SEE ALSO',
    'virt\\-cdpd(8), virt\\-cdp(1)',
  );
}

const hookPage = page(
  'virt-cdp-hook',
  8,
  "virt-cdp's part of libvirt's qemu hook",
  '.SH DESCRIPTION',
  paragraphs(
    'libvirt runs qemu.d/50-virt-cdp in its folder for hooks at every start, restore and incoming migration of a domain. A domain that is none of our business is left alone, without starting Node. For another, virt-cdp-hook asks the agent, or, if that does not answer, the records.',
    'It refuses to start a domain from a stale copy, and gives a domain that is restored or migrated the copy that is current. It ends by hook.deadline_ms, because libvirt waits for it with the domain locked. It never calls libvirt, which would be a deadlock.',
    'libvirt notices a first qemu hook only at its start or on SIGHUP. virt-cdp doctor tells whether it has.',
  ),
  '.SH FILES',
  tagged(plain('hook-called, in the store'), 'the pid of the libvirtd that called the hook last'),
  tagged(plain('starts/UUID, in the store'), 'the last start of a protected domain'),
  '.SH SEE ALSO',
  'virt\\-cdp(1), virt\\-cdpd(8)',
);

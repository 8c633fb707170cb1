/** What the shipped configuration file says of keys that belong together. */
export interface ConfigurationEntry {
  /** `key = value`: the default, or an example where the text says so. */
  keys: string[];
  text: string;
}

/** Each key with the comment before it, as the file has them. */
export function configurationEntries(shipped: string): ConfigurationEntry[] {
  const blocks = shipped.split('\n\n').slice(1);
  return blocks.flatMap((block) => {
    const lines = block.trim().split('\n');
    const isKey = (line: string): boolean => /^# +[a-z0-9_.]+ = /.test(line);
    const keys = lines.filter(isKey).map((line) => line.replace(/^# +/, '').replace(/ {2,}#.*$/, ''));
    const remarks = lines.flatMap((line) =>
      isKey(line) ? (/ {2,}# (.*)$/.exec(line)?.[1] ?? []) : line.replace(/^# ?/, ''),
    );
    return keys.length === 0 ? [] : [{ keys, text: remarks.join('\n') }];
  });
}

/** docs/configuration.md: what virt-cdp.toml(5) says. */
export function configurationDocument(shipped: string): string {
  const entries = configurationEntries(shipped).map(
    ({ keys, text }) => `${['```toml', ...keys, '```'].join('\n')}\n\n${text}\n`,
  );
  return `# Configuration

\`/etc/virt-cdp/virt-cdp.toml\` is TOML, and every key may be left out. What is shown is the default, or an example where the text says so. A key that is
not known is an error. \`virt-cdpd --check\` says whether the file is right. The agent reads it again when it changes; a file that is wrong leaves the former
configuration in force, and \`virt-cdp doctor\` says so. This page is made from the file that is shipped, as the manual page virt-cdp.toml(5) is.

${entries.join('\n')}`;
}

import { defineCommand } from '../command.ts';
import { exitCodes } from '../exit.ts';
import { installHookFile } from '../../config/hook-file.ts';

export const installHook = defineCommand({
  name: 'install-hook',
  summary: "put virt-cdp's hook where libvirt looks for it",
  description: 'For a checkout or a hand-made install; packages bring the hook with them.',
  domain: 'none',
  options: {
    dir: { value: 'DIR', summary: "libvirt's hooks (default /etc/libvirt/hooks)" },
    config: { value: 'FILE', summary: "the agent's configuration (default /etc/virt-cdp/virt-cdp.toml)" },
  },
  async run({ out }, _domain, { dir = '/etc/libvirt/hooks', config }) {
    const { path, first } = await installHookFile(dir, config);
    if (out.json) {
      out.value({ path, libvirtMustBeTold: first });
      return exitCodes.done;
    }
    out.line(`${path} is in place`);
    if (first) {
      out.line('it is the first qemu hook of this host, which libvirt notices only when told:');
      out.line('run: systemctl kill --kill-who=main -s HUP libvirtd   (or virtqemud, where that is what runs)');
    } else {
      out.line('libvirt uses it from the next start of a domain on');
    }
    return exitCodes.done;
  },
});

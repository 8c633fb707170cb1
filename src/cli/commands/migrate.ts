import { carryOut } from '../carry-out.ts';
import { defineCommand, given } from '../command.ts';

export const migrate = defineCommand({
  name: 'migrate',
  summary: 'move the running domain to another host, protected again there without copying',
  description:
    'Both hosts must reach both copies by the same names. Ends when the guest runs on the destination. To reach the agent there: ' +
    'ssh -nNL /run/virt-cdp/HOST.sock:/run/virt-cdp/virt-cdp.sock HOST',
  domain: 'required',
  options: {
    to: {
      value: 'DESTURI',
      required: true,
      positional: true,
      summary: "libvirt's URI of the destination, such as qemu+ssh://HOST/system",
    },
    destSocket: { value: 'PATH', summary: "the socket of the destination's agent, as it is reached from here" },
    unprotected: { summary: 'the destination has no agent: the domain is unprotected there' },
    virsh: {
      value: 'OPTIONS',
      summary: "more of virsh migrate's options in one word: '--persistent --undefinesource'",
    },
  },
  async run(context, domain, { to, destSocket, unprotected, virsh }) {
    const options = virsh?.split(/\s+/).filter((word) => word !== '');
    return carryOut(context, domain, 'migrate', { to, ...given({ destSocket, unprotected, options }) });
  },
});

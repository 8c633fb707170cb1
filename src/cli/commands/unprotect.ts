import { carryOut } from '../carry-out.ts';
import { defineCommand, given } from '../command.ts';

export const unprotect = defineCommand({
  name: 'unprotect',
  summary: "end the protection; the mirror's data is left alone",
  domain: 'required',
  options: {
    disk: { value: 'DEV', summary: 'this disk only' },
    keep: {
      value: 'COPY',
      summary: 'while failed over: the mirror becomes the ordinary disk',
      choices: ['mirror'],
    },
  },
  run: (context, domain, { disk, keep }) => carryOut(context, domain, 'unprotect', given({ disk, keep })),
});

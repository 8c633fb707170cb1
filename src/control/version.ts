import description from '../../package.json' with { type: 'json' };

/** The version of this source tree; the agent and the command are of one tree, and both say it. */
export const version: string = description.version;

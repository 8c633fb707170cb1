import tseslint from 'typescript-eslint';

/**
 * The folders of src/, from the top of the building to its ground: a file may import from its own folder and from
 * those below it, never from above. `ground` may be imported by everything.
 */
const storeys = [
  'agent',
  'cli',
  'hook',
  'doctor',
  'control',
  'protection',
  'graph',
  'sync',
  'health',
  'storage',
  'domain',
  'store',
  'qmp',
  'libvirt',
  'iscsi',
];

/** Programs: siblings that share a storey's rank but never import each other. */
const programs = ['agent', 'cli', 'hook'];

/** Written as if they were packages of their own: they know nothing of protection, and import nothing else of src/. */
const packages = ['qmp', 'libvirt', 'iscsi'];

function forbiddenAbove(storey) {
  const above = packages.includes(storey)
    ? storeys.filter((other) => other !== storey)
    : storeys.filter(
        (other, rank) =>
          rank < storeys.indexOf(storey) || (programs.includes(storey) && programs.includes(other) && other !== storey),
      );
  return {
    files: [`src/${storey}/**/*.ts`],
    rules: {
      'no-restricted-imports': [
        'error',
        {
          patterns: above.map((other) => ({
            group: [`../${other}/*`, `../../${other}/*`],
            message: `src/${storey} must not import src/${other}`,
          })),
        },
      ],
    },
  };
}

export default tseslint.config(
  { ignores: ['dist/', 'coverage/', 'node_modules/'] },
  {
    files: ['src/**/*.ts', 'test/**/*.ts', 'packaging/**/*.ts'],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': 'error',
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      'max-lines': ['error', { max: 420, skipBlankLines: true, skipComments: true }],
      'no-restricted-syntax': [
        'error',
        { selector: 'ExportDefaultDeclaration', message: 'name what you export' },
        { selector: 'ExportAllDeclaration', message: 'no barrel files' },
      ],
    },
  },
  {
    files: ['test/**/*.ts'],
    rules: { '@typescript-eslint/no-unused-expressions': 'off', '@typescript-eslint/no-non-null-assertion': 'off' },
  },
  ...storeys.map(forbiddenAbove),
);

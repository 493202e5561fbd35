/** A second reading of the three core files; Biome (`.biome.json`) reads them, and all other TypeScript, first. */
import { defineConfig } from 'eslint/config';
import tseslint from 'typescript-eslint';

export default defineConfig(tseslint.configs.recommended, {
  linterOptions: { reportUnusedDisableDirectives: 'error' },
  // A member that is taken out of an object is left out, and not unused.
  rules: { '@typescript-eslint/no-unused-vars': ['error', { ignoreRestSiblings: true }] },
});

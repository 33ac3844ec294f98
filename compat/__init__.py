"""The names of the tools that Ingot re-implements: a user migrates by changing an import."""

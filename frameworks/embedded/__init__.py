"""Modules that are copied into packages and run there, without Ingot: they import nothing of it."""

"""One module a subcommand: what it does, without a terminal; also Ingot's Python face."""

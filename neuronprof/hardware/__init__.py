"""The machines, as data: one TOML file a chip, each number with unit, provenance and source."""

"""Jobs as people write them: in Python and as TOML."""

"""How long it takes, with limits where the config gives some."""

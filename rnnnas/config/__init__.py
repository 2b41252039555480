"""Settings of every kind of run, presets, overrides."""

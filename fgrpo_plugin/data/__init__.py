"""Published data in the host's form; nothing here imports the host."""

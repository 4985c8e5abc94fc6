"""Published data in verl's form; nothing here imports verl."""

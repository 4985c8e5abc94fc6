"""The quick start: a tiny model, a small task, and one run through the stock verl."""

"""On the driver, once a step."""

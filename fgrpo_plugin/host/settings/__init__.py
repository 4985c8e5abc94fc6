"""Checks of a run's settings and of what they name, before the host starts."""

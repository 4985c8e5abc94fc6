"""``fgrpo plan``: memory and time of a run before its GPUs are booked. The model and its sources: ``docs/plan.md``."""

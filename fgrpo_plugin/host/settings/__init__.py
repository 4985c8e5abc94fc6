"""Before Ray starts: settings are completed and checked."""

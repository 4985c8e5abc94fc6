"""``fgrpo replay``: an update that was not finite, computed again from its file."""

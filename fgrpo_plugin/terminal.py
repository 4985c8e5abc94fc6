"""The terminal of every command: what is printed is text, never markup, and never steers the terminal."""

from typing import Any

from rich.console import Console
from rich.text import Text

from fgrpo_plugin.foreign_text import encodable, printable


class Terminal(Console):
    """rich's console in which strings, those in tables among them, are shown as they are, `printable`.

    Styles come by `style=`; brackets and colons of users' rows and paths are no markup and no emoji.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, markup=False, emoji=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        """A string as rich's text; rich calls this for whatever string it is given."""
        return super().render_str(
            encodable(printable(text), self.file), **{**settings, "markup": False, "emoji": False}
        )

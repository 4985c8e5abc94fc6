"""Text that a model, a data file or a server may send to whoever looks at it."""

STEERING = "\x00\x07\x08\x1b\r\x7f\x9b\x9d\u202e\u2066\u2028\ufeff\U000e0041\ud800"
"""Characters that steer a terminal, turn the direction of writing, or cannot be seen."""
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred",
    "\x9b31m\x9d0;owned\x07",
    "\r\x08\x08\x7foverwritten",
    "[red]red[/red] [/nothing] :skull: [link=http://x.invalid]here[/link]",
    "</script><img src=x onerror=alert(1)> <!-- & &lt; &#60;",
    "a | b || c",
    "first\nsecond\r\nthird\u2028fourth",
    "`code` ``` *b* **b** _i_ __i__ ~~s~~ \\ \\| # - + 1.",
    "[a](http://x.invalid) ![p](http://x.invalid/p.png) [a][b] <http://x.invalid>",
    "nul\x00byte",
    "\u202egnp.exe\u2066 \ufeff\U000e0041",
    r"$\frac{1}{2}$ and $\input{/etc/passwd}$ $$",
    "half \ud800 a character",
    "{{ 7 * 7 }} {% for x in y %} {{ config.__class__.__init__.__globals__ }}",
    '=HYPERLINK("http://x.invalid")',
    "y" * 5000,
)

"""Which verl this package is written for: read by the code, and compared with pages, extras and requirements by tests.

Raise `VERL` together with the extras in pyproject.toml, requirements/cpu.txt and recipes/REQUIRED_VERL.txt. What the
package relies on inside verl is listed in ``host/contract.py``; ``python -m patches.make_series`` makes the patches.
"""

VERL = "0.9.1"
"""The release of verl."""
VERL_ALSO = ("0.9.0",)
"""Further releases whose sources were read and are known; docs/versions.md says how they differ."""

VERL_MAIN_COMMIT = "1dda039b9c6311889a9c9a26040677e1254814f9"
"""The commit of verl's branch `main` that patches/main applies to, the newest that it was tried on."""
VERL_MAIN_DATE = "2026-08-22"
"""The date of that commit."""

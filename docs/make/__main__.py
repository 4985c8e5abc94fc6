"""Make every page, table and picture that is generated, from the code and from measured results:  python -m docs.make"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKERS = (
    ("docs/make/licences.py",),
    ("docs/make/groups.py",),
    ("docs/make/settings.py",),
    ("docs/make/divergences.py",),
    ("docs/make/concepts.py",),
    ("docs/make/metrics.py",),
    ("docs/make/commands.py",),
    ("docs/make/theory.py",),
    ("docs/make/lambda.py",),
    ("docs/make/engines.py",),
    ("experiments/separation/separation.py", "--report-only"),
    ("docs/make/measured.py",),
    ("experiments/lambda_lab/report.py",),
    ("experiments/hybrid/through_verl.py", "--report-only"),
    ("experiments/matrix/matrix.py", "--report-only"),
)


def main() -> None:
    for script, *options in MAKERS:
        print(script, flush=True)
        subprocess.run([sys.executable, script, *options], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()

"""Settings of verl that pages name in their sentences and tables exist, and with a + exactly where Hydra wants it."""

import re
from pathlib import Path

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
PAGES = [page for pattern in ("*.md", "docs/*.md", "recipes/*/*.md") for page in sorted(ROOT.glob(pattern))]
NAMED = re.compile(
    r"`(\+{0,2})((?:actor_rollout_ref|algorithm|critic|data|model|ray_kwargs|reward|rollout|trainer)\.[\w.]+\w)(=[^`]*)?`"
)
SHORT = {"rollout": "actor_rollout_ref.rollout", "model": "actor_rollout_ref.model"}
"""Sections that pages name without what stands before them; never with a value to copy behind a +."""
NOT_READ = {"actor_rollout_ref.nccl_timeout"}
"""Named because verl does not read it."""


def exists(config, key: str) -> bool:
    """Whether Hydra takes this key without a +, null or not."""
    section, _, name = key.rpartition(".")
    found = OmegaConf.select(config, section, throw_on_missing=False)
    return OmegaConf.is_config(found) and name in found


def test_they_exist(stock_config):
    groups = ("f_grpo,f_hal", "math_7b,cpu", "scale_32b_megatron", "safety", "async_7b")
    known = [stock_config(f"+fgrpo=[{group}]") for group in groups]
    wrong, seen = [], 0
    for page in PAGES:
        for plus, key, _ in NAMED.findall(page.read_text()):
            first, _, rest = key.partition(".")
            key = f"{SHORT[first]}.{rest}" if first in SHORT else key
            seen += 1
            there = [exists(config, key) for config in known]
            if first in SHORT and plus:
                wrong.append(f"{page.name}: {plus}{first}.{rest} would make a section of its own")
            elif key in NOT_READ or plus == "++":
                continue
            elif plus == "+" and any(there):
                wrong.append(f"{page.name}: +{key} is there already, and Hydra refuses the +")
            elif plus == "" and not any(there):
                wrong.append(f"{page.name}: {key} is not there")
    assert seen > 100 and not wrong, "\n".join(sorted(set(wrong)))

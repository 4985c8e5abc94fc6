"""The site is built without a warning, leads nowhere that is not there, and describes every public name."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

import fgrpo_plugin.advantages
import fgrpo_plugin.divergences
import fgrpo_plugin.losses
import fgrpo_plugin.theory

ROOT = Path(__file__).parents[1]
API = (fgrpo_plugin.advantages, fgrpo_plugin.divergences, fgrpo_plugin.losses, fgrpo_plugin.theory)


def build(source: Path, target: Path) -> subprocess.CompletedProcess:
    """What `make site` runs."""
    words = ["-q", "-W", "--keep-going", "-c", source / "docs", "-d", target / "doctrees", source, target / "site"]
    return subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target / "site"


def test_its_root_leads_to_its_first_page(site):
    assert "docs/index.html" in (site / "index.html").read_text()
    assert (site / "docs" / "index.html").is_file()


def test_every_page_is_in_its_list_of_pages(site):
    first = (site / "docs" / "index.html").read_text()
    listed = first[first.index("sidebar-tree") : first.index("</aside>")]
    for page in site.rglob("*.html"):
        name = page.relative_to(site).as_posix()
        if name in ("index.html", "docs/index.html", "genindex.html", "search.html") or "pull_requests" in name:
            continue
        link = name.removeprefix("docs/") if name.startswith("docs/") else f"../{name}"
        assert f'href="{link}"' in listed or "py-modindex" in name, name


def test_every_public_name_has_its_description(site):
    found = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    described = {name for kind, names in found.items() if kind.startswith("py:") for name in names}
    wanted = {f"{module.__name__}.{name}" for module in API for name in module.__all__}
    divergence = fgrpo_plugin.divergences.Divergence
    wanted |= {f"fgrpo_plugin.divergences.Divergence.{name}" for name in vars(divergence) if not name.startswith("_")}
    assert not wanted - described and len(wanted) > 30


def test_mathematics_needs_no_script(site):
    formula = (site / "docs" / "separation.html").read_text()
    assert "<math" in formula and not re.search("<script[^>]*mathjax", formula, flags=re.IGNORECASE)


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("[gone](gone.md)", "gone.md"),
        ("[gone](index.md#gone)", "gone"),
        ("![gone](gone.png)", "gone.png"),
        ("```{eval-rst}\n.. autofunction:: fgrpo_plugin.losses.gone\n```", "gone"),
        ("```{eval-rst}\n:py:func:`fgrpo_plugin.gone`\n```", "gone"),
    ],
)
def test_what_leads_nowhere_ends_it(tmp_path, planted, said):
    (tmp_path / "docs").mkdir()
    for name in ("conf.py", "site.css"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{planted}\n")
    done = build(tmp_path, tmp_path / "made")
    assert done.returncode != 0 and said in done.stderr


def test_the_loop_on_the_page_of_the_api_is_f_hal_and_its_pairs_are_dpo():
    import torch
    from torch.nn.functional import logsigmoid

    text = (ROOT / "docs" / "api.md").read_text()
    (example,) = re.findall(r"<!-- own loop -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    exec(example, names)
    torch.manual_seed(0)
    policy, reference = torch.nn.Embedding(7, 7), torch.nn.Embedding(7, 7)
    sampled, pairs = torch.randint(7, (8, 6)), torch.randint(7, (4, 6))
    rewards, prompts = torch.tensor([0.0, 1, 1, 0, 0, 0, 0, 0]), ["a"] * 4 + ["b"] * 4
    loss, r = names["step"](policy, reference, sampled, rewards, prompts, pairs, 3)
    loss.backward()
    assert policy.weight.grad.abs().sum() > 0 and reference.weight.grad is None

    def log_prob(model, row):
        table = model.weight.log_softmax(-1)
        return sum(table[row[i], row[i + 1]] for i in range(2, 5))  # three tokens of response

    by_hand = [0.1 * (log_prob(policy, row) - log_prob(reference, row)) for row in pairs]
    torch.testing.assert_close(r, torch.stack(by_hand))
    d = names["divergence"]
    fdo = (d.conjugate_of_link(r[1::2]) - d.link(r[0::2])).mean()
    assert loss.item() == pytest.approx(
        5 * fdo.item() + 5 * on_policy(policy, reference, sampled, log_prob, d), rel=1e-5
    )
    z = r[0::2] - r[1::2]
    dpo = names["fdo_loss"](torch.cat([z, -z]), torch.tensor([True] * len(z) + [False] * len(z)), d)
    assert dpo.item() == pytest.approx((-2 * logsigmoid(z).mean() - 2 * math.log(2)).item(), rel=1e-5)


def on_policy(policy, reference, sampled, log_prob, d) -> float:
    """The first group by the definition; the second has equal rewards and no advantage."""
    import torch

    rewards = [0.0, 1.0, 1.0, 0.0]
    mean, spread = 0.5, torch.tensor(rewards).std().item() + 1e-6
    a = [(reward - mean) / spread for reward in rewards]
    r = [0.1 * (log_prob(policy, row) - log_prob(reference, row)) for row in sampled[:4]]
    total = 0.0
    for side in ([1, 2], [0, 3]):
        sign = 1 if a[side[0]] > 0 else -1
        scores = torch.stack([sign * rewards[i] - log_prob(policy, sampled[i]) / 3 for i in side])
        for i, w in zip(side, len(side) * scores.softmax(0), strict=True):
            total += abs(a[i]) * w.item() * (-d.link(r[i]) if sign > 0 else d.conjugate_of_link(r[i])).item()
    return total / 8

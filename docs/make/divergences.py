"""Make docs/divergences.md and its figures from the code:  python docs/make/divergences.py"""

from pathlib import Path

import torch

from fgrpo_plugin.divergences import Divergence, available_divergences, get_divergence

DOCS = Path(__file__).parents[1]
ALPHAS = (-1.0, 0.5, 3.0)

# f as the table of divergences has it, and when one would pick it.
GENERATOR = {
    "kl": "t log t",
    "reverse_kl": "-log t",
    "pearson": "(t - 1)^2",
    "pearson_restricted": "(t - 1)^2 on t >= 0",
    "neyman": "(1 - t)^2 / t",
    "squared_hellinger": "(sqrt t - 1)^2",
    "jensen_shannon": "t log t - (t + 1) log((t + 1)/2)",
    "gan": "t log t - (t + 1) log(t + 1)",
    "total_variation": "abs(t - 1) / 2",
    "jeffreys": "(t - 1) log t",
    "alpha": "(t^a - 1 - a (t - 1)) / (a (a - 1))",
}
# g(r) and f*(g(r)) of each link as one reads them; tests/test_docs.py computes them and compares with the code.
LINKS = {
    ("kl", "variational"): ("r", "exp(r - 1)"),
    ("kl", "density_ratio"): ("1 + r", "exp(r)"),
    ("reverse_kl", "variational"): ("-exp(-r)", "r - 1"),
    ("reverse_kl", "density_ratio"): ("-exp(-r)", "r - 1"),
    ("pearson", "variational"): ("r", "r + r^2/4"),
    ("pearson", "density_ratio"): ("2 * exp(r) - 2", "exp(2 * r) - 1"),
    ("pearson_restricted", "variational"): ("r", "r + r^2/4 above r = -2, else -1"),
    ("pearson_restricted", "density_ratio"): ("2 * exp(r) - 2", "exp(2 * r) - 1"),
    ("neyman", "variational"): ("1 - exp(-r)", "2 - 2 * exp(-r/2)"),
    ("neyman", "density_ratio"): ("1 - exp(-2 * r)", "2 - 2 * exp(-r)"),
    ("squared_hellinger", "variational"): ("1 - exp(-r)", "exp(r) - 1"),
    ("squared_hellinger", "density_ratio"): ("1 - exp(-r/2)", "exp(r/2) - 1"),
    ("jensen_shannon", "variational"): ("log(2) - softplus(-r)", "softplus(r) - log(2)"),
    ("jensen_shannon", "density_ratio"): ("log(2) - softplus(-r)", "softplus(r) - log(2)"),
    ("gan", "variational"): ("-softplus(-r)", "softplus(r)"),
    ("gan", "density_ratio"): ("-softplus(-r)", "softplus(r)"),
    ("total_variation", "variational"): ("tanh(r)/2", "tanh(r)/2"),
    ("jeffreys", "density_ratio"): ("1 + r - exp(-r)", "exp(r) + r - 1"),
    ("alpha", "density_ratio"): ("(exp((a - 1) * r) - 1)/(a - 1)", "(exp(a * r) - 1)/a"),
}
PICK = {
    "kl": "Gentle on the negative side: what is already unlikely is left alone, what is still likely is pushed hard.",
    "reverse_kl": "Rows of the negative side are pushed down for ever; those of the positive side matter less and less "
    "once they have risen. Watch the length and the entropy.",
    "pearson": "The default. Rows of the positive side always count the same; those of the negative side are pushed down "
    "only to r = -2, that is to about exp(-2/beta) of the reference, and are pulled back from below it.",
    "pearson_restricted": "As pearson, but rows of the negative side below r = -2 are left where they are.",
    "neyman": "The lower a row of the negative side lies, the harder it is pushed. Only with `implicit_reward_clip`.",
    "squared_hellinger": "Both sides limit themselves; a row of the positive side that has become unlikely, or one of the "
    "negative side that has become likely, gets an exponentially large push. Clean rewards.",
    "jensen_shannon": "Bounded push, fading smoothly on both sides (logistic): noisy rewards, long runs.",
    "gan": "The gradient of jensen_shannon; the value differs by 2 log 2.",
    "total_variation": "Fades on both sides whether a row moves as asked or not, so rows that resist are given up: the "
    "least sensitive to wrong labels, and the least able to turn a policy round.",
    "jeffreys": "The sum of kl and reverse_kl: strong on both sides, never fading. Clean rewards, small learning rate.",
    "alpha": "Moves between neyman (a = -1), squared_hellinger (a = 1/2), kl (a -> 1) and pearson (a = 2), but for factors: rows of the "
    "positive side weigh exp((a - 1) r), those of the negative side exp(a r).",
}

# Published loss; divergence; at which reward; and what L_FDO then is. tests/test_special_cases.py proves each.
SPECIAL = {
    "DPO, arXiv 2305.18290": ("jensen_shannon (gan)", "pairs", "2 L_DPO - 2 log 2 (2 L_DPO)"),
    "IPO, arXiv 2310.12036": ("pearson", "pairs, tau = beta/8", "beta^2/4 L_IPO - 4"),
    "GPO, exponential, arXiv 2402.05749": ("squared_hellinger", "pairs", "2 L_GPO - 2"),
    "BCO, arXiv 2404.04656": ("gan (jensen_shannon)", "r - delta", "L_BCO (L_BCO - 2 log 2)"),
    "KTO, arXiv 2402.01306, lambda_D = n/n_D, lambda_U = n/n_U": ("total_variation", "(r - z_0)/2", "L_KTO - 1"),
    "HDO, the authors' public code, sides of equal size": ("squared_hellinger, density_ratio", "r", "2 L_HDO - 2"),
    "KLDO, arXiv 2502.00657": ("kl", "r + c, the best constant c", "L_KLDO"),
}

PAGE = """# Divergences

Made by `python docs/make/divergences.py`. The formulas are those of the table in `fgrpo_plugin/divergences.py` (a test compares); here is
what they do to a row, which is one response. f lies between the two sides of the loss. It is not the regulariser towards the reference, as in
f-DPO: the implicit reward stays beta log(pi/pi_ref) for every f.

A loss has two sides. The **positive side**, rows with positive advantage and desirable (D+) preference rows, gets -g(r); the **negative
side**, rows with negative advantage and undesirable (D-) preference rows, gets f\\*(g(r)). Minimising the loss moves the implicit reward
r = beta log(pi/pi_ref) of a row up with slope g'(r) on the positive side, and down with slope (f\\*.g)'(r) on the negative one.
A slope that goes to 0 lets go of rows that have moved far enough (**fades**), one that grows pulls harder the further they are (**grows**).
In preference data, desirable is DPO's chosen and undesirable its rejected response.

{links}

## What each one does

At r = 0, where training starts, the two **slopes at 0** say how hard each side is pushed; with (1, 1), `scale=unit` and
`weighting=none` the first gradient is that of GRPO under `loss_agg_mode=seq-mean-token-sum`. **Range**: outside it r is clipped, so
that values and gradients of a row are finite in float32. A slope that grows exponentially can still be large enough there for the
norm of the whole gradient to overflow, and verl then skips the update: with such an entry set `implicit_reward_clip`, to 20 for
example.

{slopes}

## When to pick which

Reasoned from the slopes above, not measured; what was measured stands in [experiments/matrix](../experiments/matrix/README.md).

{pick}

The implicit reward at which the loss is smallest, r\\* as a function of the density ratio t = dD+/dD-, is log t for every density-ratio
link and for the variational links of reverse_kl, jensen_shannon and gan; 1 + log t for kl, 2 log t for neyman, log(t)/2 for
squared_hellinger, 2 (t - 1) for pearson. A policy that follows it is pi_ref exp(r\\*/beta)/Z, Z its sum: pearson's is by far the steepest.

Your own: `register_divergence(name, f, f')` takes a generator and its derivative in torch operations and gets the density-ratio
link. It counts for the process that calls it, so call it in a module that every worker imports
(`VERL_USE_EXTERNAL_MODULES=my_module`).

## Known losses that are special cases

A run gives L_FDO the r of each response by itself, also with `keep_pairs`, which only draws pairs together. So **no setting of a run is
DPO, IPO or GPO**, which take differences within pairs, or has a constant like KTO's z_0, BCO's delta or KLDO's c. With lambda = 1, gan is BCO
with delta = 0, and squared_hellinger with the density-ratio link is HDO. The others are one call of `fdo_loss` (KLDO: `kldo_loss`) in a
trainer of yours ([README](../README.md#without-verl)). And without pairs the constant beta log Z(x) of a prompt does not cancel as in DPO:
[theory.md](theory.md).

L_FDO equals the right column when it is given these implicit rewards. KTO's z_0 and BCO's delta are constants that those methods estimate
from the batch, without gradient; KTO and HDO take one mean over all rows, FDO one over each side. For pairs it is that of the ordered pair, z = r(chosen) - r(rejected), as
D+, and of the pair read backwards, -z, as D-. What else is near (f-DPO, REAL, f-DPG, DPH-RL, AMIR-GRPO), and how far it is the same:
[related.md](related.md).

{special}

With sigma the logistic function:

* **DPO.** jensen_shannon has -g(z) = softplus(-z) - log 2 and f\\*(g(-z)) = softplus(-z) - log 2, and softplus(-z) is
  -log sigma(z).
* **IPO.** pearson has -g(z) + f\\*(g(-z)) = -2z + z^2/4 = (z - 4)^2/4 - 4; with z = beta h this is beta^2/4 (h - 4/beta)^2 - 4,
  and 4/beta = 1/(2 tau).
* **GPO.** squared_hellinger has -g(z) + f\\*(g(-z)) = 2 exp(-z) - 2.
* **BCO.** gan has -g(r) = softplus(-r) = -log sigma(r) and f\\*(g(r)) = softplus(r) = -log sigma(-r).
* **KTO.** sigma(x) = 1/2 + tanh(x/2)/2, so 1 - sigma(r - z_0) = 1/2 - g((r - z_0)/2), and 1 - sigma(z_0 - r) = 1/2 + g((r - z_0)/2).
* **HDO.** The density-ratio link has -g(u) = exp(-u/2) - 1 and f\\*(g(u)) = exp(u/2) - 1.
* **KLDO.** kl has L_FDO(r + c) = -mean r - c + exp(c - 1) mean exp(r), smallest at c = 1 - log mean exp(r), where it is
  -mean r + log mean exp(r). `kldo_loss` computes it so, with c a constant of the whole optimiser step; as `divergence` of
  f-GRPO or f-HAL `kldo` is refused by name, because its logarithm couples all rows.

## Pictures

Slope against implicit reward: positive side blue, negative side red; solid variational, dashed density ratio.

{figures}
"""


def entries() -> list[tuple[str, Divergence]]:
    """Every built-in divergence with every link that it has, and what to call it."""
    found = []
    for name in available_divergences():
        for alpha in ALPHAS if name == "alpha" else (None,):
            for link in ("variational", "density_ratio"):
                params = {} if alpha is None else {"alpha": alpha}
                try:
                    found.append((name, get_divergence(name, link, **params)))
                except ValueError:
                    continue  # no such link
    return found


def slopes(d: Divergence, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """g'(r) and (f*.g)'(r)."""
    r = r.double().requires_grad_()
    positive, negative = (torch.autograd.grad(function(r).sum(), r)[0] for function in (d.link, d.conjugate_of_link))
    return positive, negative


def tendency(near: float, far: float) -> str:
    """Say what a slope does as r goes far in one direction: from 8 to 16 away from 0."""
    if abs(far) < 0.6 * abs(near) or far == 0:
        return "fades"
    if abs(far) > 1.4 * abs(near):
        return "grows" if far > 0 else "pulls back"
    return "constant"


def slopes_table() -> str:
    """One row for every divergence and link."""
    lines = [
        "| divergence | f(t) | link | slopes at 0 | positive side, r rising | falling | negative side, r falling | rising | range |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, d in entries():
        positive, negative = slopes(d, torch.tensor([-16.0, -8.0, 8.0, 16.0]))
        at_zero = ", ".join(f"{slope:.3g}" for slope in d.slopes)
        parameter = "" if d.alpha is None else f", a = {d.alpha:g}"
        low, high = (f"{bound:g}" for bound in d.range)
        moves = [
            tendency(*map(float, (values[near], values[far])))
            for values, near, far in ((positive, 2, 3), (positive, 1, 0), (negative, 1, 0), (negative, 2, 3))
        ]
        cells = (name + parameter, GENERATOR[name], d.link_name, f"({at_zero})", *moves, f"[{low}, {high}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def links_table() -> str:
    """g and f*(g) of every divergence and link."""
    lines = ["| divergence | link | g(r) | f\\*(g(r)) |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {link} | {g} | {of_g} |" for (name, link), (g, of_g) in LINKS.items()]
    return "\n".join(lines)


def page() -> str:
    """The text of docs/divergences.md."""
    pick = "\n".join(["| divergence | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in PICK.items())])
    figures = "\n".join(f"![{name}](figures/divergence_{name}.png)" for name in GENERATOR)
    head = "| published loss | divergence of FDO | at the implicit reward | L_FDO is |\n| --- | --- | --- | --- |\n"
    special = head + "\n".join(f"| {name} | {' | '.join(cells)} |" for name, cells in SPECIAL.items())
    return PAGE.format(links=links_table(), slopes=slopes_table(), pick=pick, special=special, figures=figures)


def draw(folder: Path) -> None:
    """One figure per divergence."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    r = torch.linspace(-4, 4, 401)
    for name in GENERATOR:
        figure, axes = plt.subplots(figsize=(5, 3), dpi=90)
        for _, d in (entry for entry in entries() if entry[0] == name):
            positive, negative = slopes(d, r)
            style = "-" if d.link_name == "variational" or name == "alpha" else "--"
            shade = 1.0 if d.alpha is None else 0.35 + 0.3 * ALPHAS.index(d.alpha)
            suffix = d.link_name.replace("_", " ") if d.alpha is None else f"a = {d.alpha:g}"
            axes.plot(r, positive, style, color="tab:blue", alpha=shade, label=f"positive, {suffix}")
            axes.plot(r, negative, style, color="tab:red", alpha=shade, label=f"negative, {suffix}")
        axes.axhline(0, color="0.8", linewidth=0.8)
        axes.axvline(0, color="0.8", linewidth=0.8)
        axes.set(ylim=(-1.2, 4), xlabel="implicit reward r", ylabel="slope", title=name)
        axes.legend(fontsize=7)
        figure.tight_layout()
        figure.savefig(folder / f"divergence_{name}.png", metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    (DOCS / "divergences.md").write_text(page())
    draw(DOCS / "figures")

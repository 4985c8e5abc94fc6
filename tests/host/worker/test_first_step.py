"""The presets `paper` and `released` through verl's own ``ppo_loss``, every divergence, link and level."""

import pytest

from tests.support.micro_batches import BETA, actor_config, loss_rows, run_loss
from tests.test_presets import LEVELS, every_link


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", every_link(), ids=str)
def test_paper_and_released_have_the_same_gradient_in_the_first_step(key, level):
    """Through verl's ppo_loss in float32, uneven micro-batches; pi_theta = pi_old, which is not pi_ref."""
    name, link, alpha = key
    settings = {"divergence": name, "link": link, "alpha": alpha, "level": level, "beta": BETA}
    splits = [[0, 1, 2, 3, 4], [5, 6], [8, 9, 10, 11, 7]]
    gradients = [
        run_loss(loss_rows(), actor_config(preset=p, **settings), splits)[2] for p in ("paper", "released", "stable")
    ]
    largest = gradients[0].abs().max()
    assert largest > 0 and (gradients[0] - gradients[1]).abs().max() <= 1e-6 * largest
    assert (gradients[0] - gradients[2]).abs().max() > 0.01 * largest

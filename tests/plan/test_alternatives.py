"""What is offered where nothing is advised fits, and nothing smaller of its kind does."""

from dataclasses import replace

from fgrpo_plugin.model_shape import find_model
from fgrpo_plugin.plan.advice import advise
from fgrpo_plugin.plan.alternatives import alternatives
from fgrpo_plugin.plan.gpus import find_gpu, known_gpus
from fgrpo_plugin.plan.planned_run import PlannedRun
from tests.plan.planning import ASSUMED


def test_the_smallest_card_that_fits_is_named():
    one = PlannedRun(find_model("Qwen2.5-32B"), find_gpu("RTX 4090"), gpus_per_node=1)
    assert not advise(one, ASSUMED).fits
    (card,) = (sentence for sentence in alternatives(one, ASSUMED) if "smallest card" in sentence)
    named = find_gpu(card.split(" (")[0].removeprefix("1 x "))
    assert named.memory > one.gpu.memory

    def fits(name):
        advice = advise(replace(one, gpu=find_gpu(name)), ASSUMED)
        return advice.fits and advice.run.gpus == 1

    assert fits(named.name) and not any(fits(name) for name in known_gpus() if find_gpu(name).memory < named.memory)

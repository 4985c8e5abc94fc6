"""A model's class is looked at without another process."""

import ast
from types import SimpleNamespace

from fgrpo_plugin.host.cpu import inspection
from tests.host.cpu.fresh import run


def test_vllm_finds_what_it_finds_by_another_process_without_one(tmp_path):
    code = """
        import os, subprocess
        os.environ["VLLM_CACHE_ROOT"] = {cache!r}
        from fgrpo_plugin.host import cpu
        if {ours}:
            cpu.install()
        started, run = [], subprocess.run
        subprocess.run = lambda *args, **kwargs: started.append(args) or run(*args, **kwargs)
        from vllm.model_executor.models.registry import ModelRegistry
        info = ModelRegistry.models["Qwen2ForCausalLM"].inspect_model_cls()
        print([len(started), repr(info)])
    """
    ours, theirs = (
        ast.literal_eval(run(code.format(cache=str(tmp_path / str(ours)), ours=ours))) for ours in (True, False)
    )
    assert ours[0] == 0 and theirs[0] == 1
    assert ours[1] == theirs[1]


def test_a_vllm_without_the_other_process_is_left_alone():
    module = SimpleNamespace()
    inspection.register(module)
    assert vars(module) == {}

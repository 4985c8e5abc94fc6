"""The engines under the names that verl asks for."""


def test_fsdp_engines_are_registered(facts):
    head, value = "CpuFSDPEngineWithLMHead", "CpuFSDPEngineWithValueHead"
    assert facts["engines"] == [head, head, value, value]

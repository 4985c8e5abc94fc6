"""The device interface without an accelerator."""


def test_platform(facts):
    assert facts["device"] == facts["tensors_go_to"] == "cpu"
    assert facts["ipc"] is False
    assert facts["ray"] == {"num_gpus": 1}
    assert facts["rng"] and facts["memory"]

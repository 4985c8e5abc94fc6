"""GPUs by name, by file and by options."""

import pytest

from fgrpo_plugin.plan.gpus import find_gpu, known_gpus


def test_gpus_are_found_by_any_of_their_names():
    assert find_gpu("h100") == find_gpu("H100-SXM") == find_gpu("H100-80GB")
    assert find_gpu("A100").memory_gib == find_gpu("A100-80GB").memory_gib > find_gpu("A100-40GB").memory_gib
    assert {find_gpu(name).name for name in known_gpus()} == set(known_gpus())


def test_a_gpu_is_described_by_a_file_or_by_options(tmp_path):
    numbers = {"memory_gib": 96, "tflops": 148, "bandwidth_gb": 4000, "link_gb": 450, "network_gb": 50, "host_gb": 64}
    file = tmp_path / "h20.yaml"
    file.write_text("\n".join(f"{key}: {value}" for key, value in numbers.items()))
    assert find_gpu(str(file)) == find_gpu("h20", **numbers)
    assert find_gpu("H100", memory_gib=94).memory_gib == 94
    with pytest.raises(ValueError, match=r"H20 is not known; known: A100-40GB.*a YAML file .*--memory-gib --tflops"):
        find_gpu("H20", memory_gib=96)
    file.write_text("memory_gib: 96")
    with pytest.raises(ValueError, match=r"bandwidth_gb, .* is missing"):
        find_gpu(str(file))
    file.write_text("memory_gib: 96\ntflop: 1")
    with pytest.raises(ValueError, match="is missing"):
        find_gpu(str(file))
    with pytest.raises(ValueError, match="no such file"):
        find_gpu(str(tmp_path / "other.yaml"))
    with pytest.raises(ValueError, match="tflops=0 must be a number > 0"):
        find_gpu("H100", tflops=0)

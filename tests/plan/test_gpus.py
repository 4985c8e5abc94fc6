"""GPUs by name, by file and by options."""

from dataclasses import replace

import pytest

from fgrpo_plugin.plan.gpus import find_gpu, known_gpus, plain_name


def test_gpus_are_found_by_any_of_their_names():
    assert find_gpu("h100") == find_gpu("H100-SXM") == find_gpu("H100-80GB")
    assert find_gpu("A100").memory_gib == find_gpu("A100-80GB").memory_gib > find_gpu("A100-40GB").memory_gib
    assert {find_gpu(name).name for name in known_gpus()} == set(known_gpus())


PRINTED = {  # by nvidia-smi and torch.cuda.get_device_name, or written by people
    "NVIDIA H100 80GB HBM3": "H100-SXM",
    "NVIDIA H100 PCIe": "H100-PCIe",
    "NVIDIA H100 NVL": "H100-NVL",
    "NVIDIA H200": "H200",
    "NVIDIA H20": "H20",
    "NVIDIA H800": "H800",
    "h800": "H800",
    "NVIDIA B200": "B200",
    "A100-SXM4-80GB": "A100-80GB",
    "NVIDIA A100-SXM4-40GB": "A100-40GB",
    "NVIDIA A100-PCIE-40GB": "A100-40GB-PCIe",
    "NVIDIA A100 80GB PCIe": "A100-80GB-PCIe",
    "NVIDIA A800-SXM4-80GB": "A800-80GB",
    "NVIDIA A800 80GB PCIe": "A800-80GB-PCIe",
    "A800": "A800-80GB",
    "NVIDIA L40S": "L40S",
    "NVIDIA L40": "L40",
    "NVIDIA L4": "L4",
    "NVIDIA A40": "A40",
    "NVIDIA A10G": "A10G",
    "NVIDIA RTX A6000": "RTX-A6000",
    "NVIDIA RTX 6000 Ada Generation": "RTX-6000-Ada",
    "NVIDIA GeForce RTX 3090": "RTX3090",
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "RTX 4090": "RTX4090",
    "rtx-4090": "RTX4090",
    "NVIDIA GeForce RTX 5090": "RTX5090",
    "AMD Instinct MI300X": "MI300X",
}


@pytest.mark.parametrize("printed", PRINTED)
def test_gpus_are_found_by_what_tools_print(printed):
    assert find_gpu(printed).name == PRINTED[printed]


def test_every_gpu_has_its_source_and_no_name_twice():
    names = [plain_name(known) for name, entry in known_gpus().items() for known in (name, *entry["names"])]
    assert len(set(names)) == len(names)
    assert all(entry["source"] for entry in known_gpus().values())


def test_export_variants_have_narrower_links_or_fewer_products():
    """Data sheets: A800 and H800 have 400 GB/s of NVLink in all; H20 148 TFLOP/s, 96 GB and 4.0 TB/s."""
    assert find_gpu("A800") == replace(find_gpu("A100"), name="A800-80GB", link_gb=200)
    assert find_gpu("H800") == replace(find_gpu("H100"), name="H800", link_gb=200)
    h20 = find_gpu("H20")
    assert (h20.tflops, h20.bandwidth_gb, h20.link_gb) == (148, 4000, 450) and 94 < h20.memory_gib < 96


@pytest.mark.parametrize(
    "written, meant", [("H1000", "H100-SXM"), ("RTX 4900", "RTX4090"), ("A100-800GB", "A100-80GB")]
)
def test_an_unknown_gpu_is_answered_with_near_ones(written, meant):
    with pytest.raises(ValueError, match=f"is not known; nearest: .*{meant}.*; known: "):
        find_gpu(written)


def test_a_gpu_is_described_by_a_file_or_by_options(tmp_path):
    numbers = {"memory_gib": 96, "tflops": 148, "bandwidth_gb": 4000, "link_gb": 450, "network_gb": 50, "host_gb": 64}
    file = tmp_path / "my.yaml"
    file.write_text("\n".join(f"{key}: {value}" for key, value in numbers.items()))
    assert find_gpu(str(file)) == find_gpu("my", **numbers)
    assert find_gpu("H100", memory_gib=94).memory_gib == 94
    with pytest.raises(ValueError, match=r"X9 is not known; known: A100-40GB.*a YAML file .*--assume memory_gib="):
        find_gpu("X9", memory_gib=96)
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

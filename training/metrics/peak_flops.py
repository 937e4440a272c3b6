"""What accelerators can do at most, by the names that they call themselves."""

# Dense matrix products in bf16 (fp16 where the card has no bf16) with sums in fp32, in TFLOP/s, from the makers'
# data sheets; where these give numbers with sparsity, half of them. The first row whose words are all in the
# device's name counts.
_TFLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("GB200",), 2500.0),
    (("B200",), 2250.0),
    (("H200", "NVL"), 835.5),
    (("H200",), 989.4),
    (("GH200",), 989.4),
    (("H100", "PCIe"), 756.5),
    (("H100", "NVL"), 835.5),
    (("H100",), 989.4),
    (("H800", "PCIe"), 756.5),
    (("H800",), 989.4),
    (("H20",), 148.0),
    (("A100",), 312.0),
    (("A800",), 312.0),
    (("A30",), 165.0),
    (("A40",), 149.7),
    (("A10G",), 70.0),
    (("A10",), 125.0),
    (("L40S",), 362.0),
    (("L40",), 181.0),
    (("L4",), 121.0),
    (("RTX", "6000", "Ada"), 364.2),
    (("RTX", "A6000"), 154.8),
    (("RTX", "4090"), 165.2),
    (("RTX", "3090"), 71.0),
    (("V100", "PCIe"), 112.0),
    (("V100",), 125.0),
    (("T4",), 65.0),
    (("MI325X",), 1307.4),
    (("MI300X",), 1307.4),
    (("MI250X",), 191.5),  # a card is two devices
)


def peak_flops(device_name: str) -> float | None:
    """A device's peak in FLOP/s at bf16; None for one that is not in the list."""
    words = device_name.replace("-", " ").lower().split()
    for known, tflops in _TFLOPS:
        if all(word.lower() in words for word in known):
            return tflops * 1e12
    return None

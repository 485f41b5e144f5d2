"""Peak arithmetic and memory of accelerators, as their makers state them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """One device.

    Attributes
    ----------
    peak : float
        Floating-point operations per second, bfloat16 with dense matrices.
    memory : float
        Bytes.
    source : str
        Of both.
    """

    peak: float
    memory: float
    source: str


HARDWARE = {
    "h100": Hardware(989.4e12, 80e9, "NVIDIA H100 SXM5 data sheet, without sparsity"),
    "h200": Hardware(989.4e12, 141e9, "NVIDIA H200 SXM data sheet, without sparsity"),
    "a100": Hardware(312e12, 80e9, "NVIDIA A100 80GB SXM data sheet, without sparsity"),
    "v5p": Hardware(459e12, 95e9, "Google Cloud, system architecture of TPU v5p"),
    "v5e": Hardware(197e12, 16e9, "Google Cloud, system architecture of TPU v5e"),
}
"""By name."""

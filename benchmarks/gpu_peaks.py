"""What NVIDIA publishes of its GPUs at their best: operations and bytes a second. Nothing in here was measured by us.

All rates are dense, since our parts have no 2:4 sparse weights; NVIDIA's sparse figure stands beside each, and is
twice as high (NVIDIA Ampere GA102 whitepaper, "Fine-Grained Structured Sparsity"). FP16 is that with FP16 accumulation,
the faster of two, so that a bound stays one. FP32 is without TF32, which our engines are built without. A figure that
is not published, and does not follow from published ones, is None.
"""

from __future__ import annotations

from dataclasses import dataclass

_SHEETS = "https://developer.nvidia.com/embedded/downloads"  # NVIDIA's Jetson Download Center: data sheets by number
_SHEET_NANO = "NVIDIA Jetson Orin Nano Series Modules Data Sheet, DS-11105-001 v1.5"
_SHEET_NX = "NVIDIA Jetson Orin NX Series Modules Data Sheet, DS-10712-001 v1.5"
_URL_NX = "https://developer.nvidia.com/downloads/jetson-orin-nx-module-series-data-sheet"
_SUPER = "NVIDIA blog, Jetson Orin Nano Developer Kit Gets a Super Boost"
_URL_SUPER = "https://developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost/"
_COMPARED = "https://www.nvidia.com/en-us/geforce/graphics-cards/compare/"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_GA102 = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_LISTED = "https://hmc-tech.com/gpu/nvidia-geforce-rtx-4060-vs-nvidia-geforce-rtx-3060"
_LISTED_4060 = "https://fpsbench.com/compare/gpu/nvidia-geforce-rtx-4060-vs-nvidia-t600"
_CORES = "FP32 is 2 operations a CUDA core and clock"


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU in one power mode; its DLAs, where it has some, are left out, since no engine of ours runs on them."""

    key: str  # what --devices calls it
    name: str
    mode: str  # power mode or clock that the figures are for
    int8_tops: float | None  # 10^12 operations a second, dense
    int8_sparse_tops: float | None
    fp16_tflops: float | None  # dense
    fp16_sparse_tflops: float | None
    fp32_tflops: float | None
    memory_gb_s: float | None  # 10^9 bytes a second
    source: str  # title of the publication
    urls: tuple[str, ...]
    follows: str  # how what is not printed there follows from what is

    def peak_flops(self, precision: str) -> float | None:
        """Operations a second in a precision of optimize/plan.py; None where it is not published."""
        rates = {"Int8": self.int8_tops, "Half": self.fp16_tflops, "BFloat16": self.fp16_tflops}
        rate = (rates | {"Float": self.fp32_tflops}).get(precision)
        return None if rate is None else rate * 1e12

    @property
    def peak_bytes(self) -> float | None:
        """Bytes a second of its memory; None where it is not published."""
        return None if self.memory_gb_s is None else self.memory_gb_s * 1e9


DEVICES = (
    Device(
        "orin-nano", "Jetson Orin Nano 8GB", "15 W, 625 MHz", 20, 40, 10, None, 1.28, 68,
        f"{_SHEET_NANO}; FP16: {_SUPER}", (_SHEETS, _URL_SUPER),
        f"INT8 dense and sparse are both printed, FP16 is printed dense; {_CORES}: 1024 x 2 x 625 MHz",
    ),
    Device(
        "orin-nano-super", "Jetson Orin Nano 8GB", "MAXN_SUPER, 1020 MHz", 33, 67, 17, None, 2.09, 102,
        f"{_SHEET_NANO}; FP16: {_SUPER}", (_SHEETS, _URL_SUPER),
        f"INT8 dense and sparse are both printed, FP16 is printed dense; {_CORES}: 1024 x 2 x 1020 MHz",
    ),
    Device(
        "orin-nx-16", "Jetson Orin NX 16GB", "25 W, 918 MHz", 29.7, 59.4, 15.3, None, 1.88, 102,
        f"{_SHEET_NX}; {_SHEET_NANO}; {_SUPER}", (_URL_NX, _SHEETS, _URL_SUPER),
        "the 100 sparse and 50 dense TOPS printed count the DLAs; the GPU has the Orin Nano's 32 tensor cores, so "
        f"INT8 and FP16 are what those do at 1020 MHz, times 918/1020; {_CORES}: 1024 x 2 x 918 MHz",
    ),
    Device(
        "orin-nx-16-super", "Jetson Orin NX 16GB", "MAXN_SUPER, 1173 MHz", 38, 76, 19.6, None, 2.40, 102,
        f"{_SHEET_NX}; {_SHEET_NANO}; {_SUPER}", (_URL_NX, _SHEETS, _URL_SUPER),
        "the 157 sparse and 78 dense TOPS printed count the DLAs; the GPU has the Orin Nano's 32 tensor cores, so "
        f"INT8 and FP16 are what those do at 1020 MHz, times 1173/1020; {_CORES}: 1024 x 2 x 1173 MHz",
    ),
    Device(
        "agx-orin-64", "Jetson AGX Orin 64GB", "MAXN, 1.3 GHz", 85, 170, 42.5, 85, 5.32, 204.8,
        "NVIDIA Jetson AGX Orin Series Data Sheet, DS-10662-001 v1.6",
        (_SHEETS,),
        "INT8 and FP16 are printed sparse, for the GPU without its DLAs; dense is half of that",
    ),
    Device(
        "thor-t5000", "Jetson AGX Thor (T5000)", "130 W, 1.57 GHz", 517, 1035, 258.5, 517, 8.04, 273,
        "NVIDIA blog, Introducing NVIDIA Jetson Thor, the Ultimate Platform for Physical AI: table of T5000",
        ("https://developer.nvidia.com/blog/introducing-nvidia-jetson-thor-the-ultimate-platform-for-physical-ai/",),
        f"INT8 and FP16 are printed sparse; dense is half of that; {_CORES}: 2560 x 2 x 1.57 GHz",
    ),
    Device(
        "rtx-3060", "GeForce RTX 3060 12GB", "boost, 1.78 GHz", 101.5, 203, 50.8, 101.5, 12.8, 360,
        "NVIDIA Ampere GA102 GPU Architecture whitepaper v2; NVIDIA, Compare GeForce Graphics Cards; bandwidth: a list "
        "that is not NVIDIA's", (_GA102, _COMPARED, _LISTED),
        "tensor rates are not printed for it: those of the RTX 3090 (INT8 284 dense, 568 sparse; FP16 142, 284) times "
        f"3584/10496 cores and 1.78/1.70 GHz; {_CORES}: 3584 x 2 x 1.78 GHz",
    ),
    Device(
        "rtx-4060", "GeForce RTX 4060", "boost, 2.46 GHz", 121, 242, 60.5, 121, 15.1, 272,
        "NVIDIA, Compare GeForce Graphics Cards; NVIDIA Ada GPU Architecture whitepaper v2.1; bandwidth: a list "
        "that is not NVIDIA's", (_COMPARED, _ADA, _LISTED_4060),
        "242 AI TOPS are INT8 sparse, as the 1321 of the RTX 4090 are by the whitepaper; dense is half of that, and "
        f"FP16 half of INT8, as there; {_CORES}: 3072 x 2 x 2.46 GHz",
    ),
    Device(
        "rtx-4090", "GeForce RTX 4090", "boost, 2.52 GHz", 660.6, 1321.2, 330.3, 660.6, 82.6, 1008,
        "NVIDIA Ada GPU Architecture whitepaper v2.1, Appendix A", (_ADA,),
        "all are printed, dense and sparse",
    ),
)  # fmt: skip

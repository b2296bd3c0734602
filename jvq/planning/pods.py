"""Devices that a plan can be made for: published peaks, and what is assumed of the rest."""

import dataclasses
from typing import NamedTuple

from jvq.core.errors import nearest

Number = int | float
Tile = tuple[int, int]
TILE: Tile = (1, 1)  #: nothing is padded


class Chip(NamedTuple):
    """Published peak figures of one device, and of the host that it stands in."""

    products: Number  # FLOP/s of products of float32 arrays at JAX's default precision
    integers: Number  # OP/s, int8
    memory: Number  # bytes
    bandwidth: Number  # bytes/s of that memory
    links: Number  # bytes/s between devices, all links together
    siblings: int  # devices of one host
    cores: int  # threads of one host
    tile: Tile = TILE  # rows and columns of float32 that arrays are filled up to (jvq.planning.demand.padded)


CHIPS = {
    # bf16 passes for float32 on TPUs. cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 394 TOP/s, 16 GB, 819 GB/s,
    # 1,600 Gbit/s between chips; hosts of several-host slices have 4 chips and 112 threads
    "v5e": Chip(197e12, 394e12, 16e9, 819e9, 200e9, 4, 112, (8, 128)),
    # TF32 for float32 on NVIDIA's: half of bf16. NVIDIA's data sheets, dense; NVLink; hosts as clouds rent them
    "h100": Chip(494e12, 1979e12, 80e9, 3.35e12, 900e9, 8, 208),
    "h200": Chip(494e12, 1979e12, 141e9, 4.8e12, 900e9, 8, 208),
}


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What no data sheet says. None of it was measured on a pod."""

    products: Number = 0.4  # part of the peak that products reach
    vector: Number = 0.01  # of the same peak: operations one by one, which matrix units do not do
    bandwidth: Number = 0.7
    links: Number = 0.7
    staging: Number = 8e9  # bytes/s between a host and each of its devices
    dispatch: Number = 1e-3  # seconds of the host for a program that it starts
    decode: Number = 200.0  # images/s of one thread: JPEG to 224 px
    readers: int = 16  # processes that read, a host (jvq.data.workers.MOST)
    jitter: Number = 0.02  # a device's step is longer by an exponential of this part of it
    disk: Number = 1e9  # bytes/s of checkpoints, all hosts together
    compiling: Number = 30.0  # seconds for a program that runs for the first time
    ahead: int = 3  # batches that a reader is ahead (jvq.data.workers)


@dataclasses.dataclass(frozen=True)
class Pod:
    """Devices in a mesh of ``data`` by ``model``, and their hosts."""

    chip: Chip
    data: int
    model: int = 1
    sharded: bool = False  # hosts decode a part of each batch; else every host decodes all of it
    assumed: Assumed = Assumed()

    @property
    def devices(self) -> int:
        return self.data * self.model

    @property
    def hosts(self) -> int:
        return -(-self.devices // self.chip.siblings)

    @property
    def readers(self) -> int:
        """Processes that read, of a host."""
        return min(self.assumed.readers, self.chip.cores)


def pod_of(name: str, devices: int, model: int = 1, *, sharded: bool = False, assumed: Assumed = Assumed()) -> Pod:
    """The pod of a chip by name. ``ValueError``: it is not known, or ``model`` does not divide the devices."""
    if name not in CHIPS:
        raise ValueError(f"chip '{name}' is not known{nearest(name, CHIPS)}")
    if devices < 1 or model < 1 or devices % model:
        raise ValueError(f"model: got {model}, which does not divide {devices} devices")
    return Pod(CHIPS[name], devices // model, model, sharded, assumed)

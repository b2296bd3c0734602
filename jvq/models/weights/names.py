"""Public checkpoints: from a name to the files that must be on disk. Nothing here touches the network.

| name | files |
|---|---|
| ``timm/NAME[@revision]`` | ``config.json``, ``model.safetensors`` of ``huggingface.co/timm/NAME`` |
| ``hf:owner/name[@revision]`` | these and ``preprocessor_config.json``; ``pytorch_model.bin`` for lack of safetensors |
| ``augreg/NAME``, ``augreg/B_16`` | ``NAME.npz`` of the AugReg paper (arXiv:2106.10270), whole or by its short name |
"""

import dataclasses
import difflib
import os
import re
from urllib.parse import quote

from jvq.core.errors import nearest

HUGGING_FACE = "https://huggingface.co"
GOOGLE = "https://storage.googleapis.com"

# Short names stand for the files that timm's *.augreg_in21k_ft_in1k come from: ImageNet-21k, then ImageNet-1k, at 224.
AUGREG = {
    "Ti_16": "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224",
    "S_32": "S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224",
    "S_16": "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224",
    "B_32": "B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224",
    "B_16": "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224",
    "L_16": "L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_224",
}

#: To list, and to suggest from: what the papers start from, and what stands beside it. Other names are tried as well.
KNOWN = (
    "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    "timm/vit_base_patch16_224.augreg_in21k_ft_in1k",  # the papers'; timm's own default for ViT-B is augreg2
    "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
    "timm/vit_small_patch32_224.augreg_in21k_ft_in1k",
    "timm/vit_base_patch32_224.augreg_in21k_ft_in1k",
    "timm/deit_tiny_patch16_224.fb_in1k",
    "timm/deit_small_patch16_224.fb_in1k",
    "timm/deit_base_patch16_224.fb_in1k",
    "timm/deit_tiny_distilled_patch16_224.fb_in1k",
    "timm/deit_small_distilled_patch16_224.fb_in1k",
    "timm/deit_base_distilled_patch16_224.fb_in1k",
    "timm/swin_tiny_patch4_window7_224.ms_in1k",
    "timm/swin_small_patch4_window7_224.ms_in1k",
    "timm/swin_base_patch4_window7_224.ms_in1k",
    "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "timm/vit_small_patch14_dinov2.lvd142m",
    "timm/vit_base_patch14_dinov2.lvd142m",
    "timm/vit_small_patch14_reg4_dinov2.lvd142m",
    "timm/vit_base_patch14_reg4_dinov2.lvd142m",
    "hf:google/vit-base-patch16-224",
    "hf:facebook/deit-tiny-patch16-224",
    "hf:facebook/deit-small-patch16-224",
    "hf:facebook/deit-base-patch16-224",
    "hf:facebook/dinov2-small",
    "hf:microsoft/swin-tiny-patch4-window7-224",
    *(f"augreg/{short}" for short in AUGREG),
)

PART = r"[A-Za-z0-9_](?:[\w-]|\.(?!\.))*"  # of a repository's name: two dots in a row lead out of the folder
REVISION = r"[A-Za-z0-9_](?:[\w/-]|\.(?!\.))*"  # a branch, a tag, a commit or refs/pr/1
TIMM = re.compile(rf"timm/(?P<name>{PART})(?:@(?P<revision>{REVISION}))?", re.ASCII)
HF = re.compile(rf"hf:(?P<owner>{PART})/(?P<name>{PART})(?:@(?P<revision>{REVISION}))?", re.ASCII)
AUGREG_FILE = re.compile(r"[A-Z][\w+]*-i(?:1|21)k-[\w.-]+", re.ASCII)
FILES = (".safetensors", ".npz", ".pth", ".pt", ".bin")  # a name that ends like this is a path


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """One file: where it is and what it must be like. What is None, the server says."""

    url: str
    filename: str
    sha256: str | None = None
    size: int | None = None  # bytes
    optional: bool = False
    instead_of: str | None = None  # the filename that this one stands in for, where the server lacks that


@dataclasses.dataclass(frozen=True)
class Remote:
    """What a public name stands for."""

    name: str
    folder: str  # below the cache's weights/
    files: tuple[RemoteFile, ...]  # in the order in which they are fetched: the weights last


def located(name: str, *, huggingface: str | None = None, google: str = GOOGLE) -> Remote | None:
    """The files that ``name`` stands for; None where it is not a public name, but perhaps a path.

    ``huggingface`` and ``google`` are other servers with the same layout; the environment's HF_ENDPOINT is the first's
    default. ``ValueError`` where the name begins as a public one and cannot be one.
    """
    if name.startswith("hf:"):
        found = HF.fullmatch(name)
        if not found:
            raise ValueError(f"weights: '{name}' is not of the form hf:owner/name or hf:owner/name@revision")
        return _of_hugging_face(name, found["owner"], found["name"], found["revision"] or "main", huggingface)
    if name.startswith("augreg/"):
        return _of_augreg(name, google)
    found = TIMM.fullmatch(name)
    if found and not found["name"].endswith(FILES):
        return _of_hugging_face(name, "timm", found["name"], found["revision"] or "main", huggingface)
    return None


def suggestion(name: str) -> str:
    """``" (did you mean 'a' or 'b'?)"`` to end an error with; empty where the name is known, or nothing is near."""
    plain = name.split("@")[0]
    if plain in KNOWN or not difflib.get_close_matches(plain, KNOWN, n=1):
        return ""
    return nearest(plain, KNOWN)


def _of_hugging_face(name: str, owner: str, repository: str, revision: str, endpoint: str | None) -> Remote:
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or HUGGING_FACE).rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise ValueError(f"weights: HF_ENDPOINT '{endpoint}' does not begin with https:// or http://")
    base = f"{endpoint}/{owner}/{repository}/resolve/{quote(revision, safe='')}"
    files = (RemoteFile(f"{base}/config.json", "config.json"),)
    safetensors = RemoteFile(f"{base}/model.safetensors", "model.safetensors")
    if name.startswith("hf:"):
        pre, pickled = "preprocessor_config.json", "pytorch_model.bin"
        files += (RemoteFile(f"{base}/{pre}", pre, optional=True), safetensors)
        files += (RemoteFile(f"{base}/{pickled}", pickled, instead_of="model.safetensors"),)
    else:
        files += (safetensors,)
    folder = f"huggingface/{owner}/{repository}" + ("" if revision == "main" else f"@{revision.replace('/', '--')}")
    return Remote(name, folder, files)


def _of_augreg(name: str, endpoint: str) -> Remote:
    short = name.removeprefix("augreg/").removesuffix(".npz")
    file = AUGREG.get(short, short)
    if not AUGREG_FILE.fullmatch(file):
        raise ValueError(
            f"weights: '{name}' is neither short for an AugReg file nor the whole name of one{nearest(short, AUGREG)}"
        )
    url = f"{endpoint.rstrip('/')}/vit_models/augreg/{quote(file)}.npz"
    return Remote(name, f"augreg/{file}", (RemoteFile(url, f"{file}.npz"),))

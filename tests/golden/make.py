"""Writes the golden files beside this script: tiny models of Hugging Face transformers and what they compute.

    python tests/golden/make.py

needs torch and transformers. Each ``NAME.npz`` holds what ``save_pretrained`` writes, ``model.safetensors`` (float16:
the model's weights were rounded to it) and ``config.json``, byte by byte, and the image [b y x c], the logits [b o] and
the output of every block, ``block/0`` and so on, [b n d]. ``tensors.pth`` holds tensors of several kinds.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
WEIGHTS, CONFIG = "model.safetensors", "config.json"
VIT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3, "patch_size": 4}
SWIN = {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "mlp_ratio": 2.0, "num_labels": 3, "patch_size": 2}
MODELS: dict[str, tuple[str, str, dict[str, Any], tuple[int, int]]] = {  # model, configuration, its fields, y and x
    "vit": ("ViTForImageClassification", "ViTConfig", VIT | {"intermediate_size": 16, "image_size": 8}, (8, 8)),
    "vit_wide": (
        "ViTForImageClassification",
        "ViTConfig",
        VIT | {"intermediate_size": 16, "image_size": [8, 12], "layer_norm_eps": 1e-3},
        (8, 12),
    ),
    "deit": ("DeiTForImageClassification", "DeiTConfig", VIT | {"intermediate_size": 16, "image_size": 8}, (8, 8)),
    "deit_distilled": (
        "DeiTForImageClassificationWithTeacher",
        "DeiTConfig",
        VIT | {"intermediate_size": 16, "image_size": 8},
        (8, 8),
    ),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", VIT | {"mlp_ratio": 2, "image_size": 12}, (12, 12)),
    "dinov2_resized": (
        "Dinov2ForImageClassification",
        "Dinov2Config",
        VIT | {"mlp_ratio": 2, "image_size": 20, "num_hidden_layers": 1},
        (12, 12),
    ),
    "dinov2_registers": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        VIT | {"mlp_ratio": 2, "image_size": 8, "num_register_tokens": 3},
        (8, 8),
    ),
    "swin": ("SwinForImageClassification", "SwinConfig", SWIN | {"image_size": 16, "window_size": 2}, (16, 16)),
    "swin_padded": ("SwinForImageClassification", "SwinConfig", SWIN | {"image_size": 14, "window_size": 3}, (14, 14)),
}


def produced(name: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Image, logits and the blocks' outputs of a random model, which is saved into ``folder``."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model_name, config_name, fields, size = MODELS[name]
    random = torch.Generator().manual_seed(seed)
    model = getattr(transformers, model_name)(getattr(transformers, config_name)(**fields)).eval()
    blocks: list[np.ndarray] = []

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        blocks.append((output[0] if isinstance(output, tuple) else output).numpy())

    with torch.no_grad():
        for parameter in model.parameters():  # also what is initialised with zeros or ones
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.4, generator=random).half().float())
        for module in model.modules():
            if type(module).__name__.endswith("Layer") and hasattr(module, "attention"):
                module.register_forward_hook(record)
        image = torch.empty(1, 3, *size).normal_(generator=random)
        logits = model(image).logits.numpy()
    model.save_pretrained(folder)
    found = {"image": image.permute(0, 2, 3, 1).contiguous().numpy(), "logits": logits}
    return found | {f"block/{i}": x for i, x in enumerate(blocks)}


def tensors() -> dict[str, Any]:
    """Tensors of every kind that the reader of torch files must know, each 0, 1, 2, ... in some order."""
    import torch

    whole = torch.arange(12, dtype=torch.float32)
    kinds = {str(d).removeprefix("torch."): torch.arange(4).to(d) for d in (
        torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)}  # fmt: skip
    views = {"turned": whole.reshape(3, 4).T, "part": whole[5:9:2], "empty": torch.zeros(0, 3), "number": whole[7]}
    return {**kinds, **views, "parameter": torch.nn.Parameter(whole[:3].clone())}


def main() -> None:
    import torch
    from safetensors.numpy import load_file, save

    torch.save({"epoch": 3, "model": {f"module.{name}": x for name, x in tensors().items()}}, HERE / "tensors.pth")

    for seed, name in enumerate(MODELS):
        with tempfile.TemporaryDirectory() as folder:
            found = produced(name, seed, Path(folder))
            arrays = {key: x.astype(np.float16) for key, x in load_file(Path(folder) / WEIGHTS).items()}
            files = {WEIGHTS: save(arrays, {"format": "pt"}), CONFIG: (Path(folder) / CONFIG).read_bytes()}
        np.savez_compressed(HERE / f"{name}.npz", **found, **{key: np.frombuffer(x, "u1") for key, x in files.items()})


if __name__ == "__main__":
    main()

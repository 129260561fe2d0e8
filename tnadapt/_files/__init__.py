"""Everything that is read from disk or written to it: adapter files, their JSON text, and PEFT's checkpoint folders."""

from tnadapt._files.content import Checkpoint
from tnadapt._files.drawn import check_patterns
from tnadapt._files.file import (
    digests,
    file_size,
    load,
    params_to_store,
    read_checkpoint,
    save,
)
from tnadapt._files.fingerprint import check_fingerprint
from tnadapt._files.links import read_links, save_links
from tnadapt._files.peft_card import Made
from tnadapt._files.peft_folder import TENSORS
from tnadapt._files.peft_read import read_peft
from tnadapt._files.peft_write import Written, options_of, save_as_lora, write_loras
from tnadapt._files.plain import read_object
from tnadapt._files.target import check_target, replace_folder, write_atomically
from tnadapt._files.text import from_json, to_json

__all__ = [
    "TENSORS",
    "Checkpoint",
    "Made",
    "Written",
    "check_fingerprint",
    "check_patterns",
    "check_target",
    "digests",
    "file_size",
    "from_json",
    "load",
    "options_of",
    "params_to_store",
    "read_checkpoint",
    "read_links",
    "read_object",
    "read_peft",
    "replace_folder",
    "save",
    "save_as_lora",
    "save_links",
    "to_json",
    "write_atomically",
    "write_loras",
]

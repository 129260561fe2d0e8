"""A chain on disk: its links in one file, each checked as the file of an adapter is; or a LoRA for PEFT."""

import os
from functools import partial
from pathlib import Path

from tnadapt._errors import FormatError, SiteError
from tnadapt._files import Made, Written, options_of, read_links, save_links, write_loras
from tnadapt._language import expect_path
from tnadapt._signature import answers, mistake, told
from tnadapt.policies._chain import Chain

__all__ = ["load_chain", "save_chain", "save_chain_as_lora"]


@answers(FormatError)
def save_chain(path: str | os.PathLike[str], chain: Chain) -> None:
    """Write one .safetensors file with all links of a chain, completely or not at all.

    What `save` leaves out for one adapter is left out for each link: frozen factors that follow from its seed.
    Raises FormatError for anything but a chain, and for more links than a file may have.
    """
    if not isinstance(chain, Chain):
        raise mistake(FormatError, "save_chain", "a Chain", told(chain), "Write save_chain(path, Chain(links)).")
    save_links(path, chain.links)


@answers(FormatError)
def load_chain(path: str | os.PathLike[str], *, draw_limit: int | None = None) -> Chain:
    """Read the chain in a file. The file of one adapter is a chain of one link.

    Args:
        path: the file.
        draw_limit: the most frozen numbers to draw for all links together, as in `load`.

    Raises:
        FormatError: a link for which `load` would refuse a file, links on different weights, more than 1,024 links, or
            modules that were trained in full.
        FileNotFoundError: there is no file.
    """
    found = read_links(path, draw_limit=draw_limit)
    try:
        return Chain([(one.adapter, one.params) for one in found])
    except SiteError as error:
        raise FormatError(f"{path}: expected links that form a chain, got others.\n{error}") from error


@answers(FormatError)
def save_chain_as_lora(
    chain: Chain,
    directory: str | os.PathLike[str],
    *,
    rank: int | None = None,
    base_model: str | os.PathLike[str] | None = None,
    task_type: str | None = None,
    fan_in_fan_out: bool = False,
) -> dict[str, Written]:
    """Write a LoRA checkpoint of PEFT with the sum of all links, for the weights from before the first one.

    The factors of all links stand side by side, as in `Chain.to_lora`; a `rank` shortens them. The other arguments are
    those of `tnadapt.save_as_lora`. Returns path -> the rank and the error of each weight.

    Raises:
        PlanError: a chain of full rank without `rank`.
        SiteError: a weight of experts, or one whose sites serve several tasks.
        FormatError: anything but a chain; and where `tnadapt.save_as_lora` raises it.
    """
    if not isinstance(chain, Chain):
        todo = "Write save_chain_as_lora(Chain(links), directory)."
        raise mistake(FormatError, "save_chain_as_lora", "a Chain", told(chain), todo)
    expect_path(directory, "save_chain_as_lora", FormatError)
    options = options_of("save_chain_as_lora", base_model, task_type, fan_in_fan_out) | {"modules_to_save": None}
    shapes = {path: sites[0].weight_shape for path, sites in chain.links[0].adapter.weights.items()}
    made = Made(f"a chain of {len(chain.links)} adapters", "")
    return write_loras(Path(directory), shapes, partial(chain.to_lora, rank=rank), options, {}, made=made)

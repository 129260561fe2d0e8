"""One file for a chain: its links one after another, each checked as the file of an adapter is."""

import os

from tnadapt._errors import FormatError, SiteError
from tnadapt._files import read_links, save_links
from tnadapt._signature import answers, mistake, told
from tnadapt.policies._chain import Chain

__all__ = ["load_chain", "save_chain"]


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

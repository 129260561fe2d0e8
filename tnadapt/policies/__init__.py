"""Policies of training: chains of adapters that were trained one after another.

Everything here is a pure function of adapters and their params, flat dicts of arrays.
"""

from tnadapt.policies._chain import Chain, Link
from tnadapt.policies._chain_file import load_chain, save_chain, save_chain_as_lora

__all__ = ["Chain", "Link", "load_chain", "save_chain", "save_chain_as_lora"]

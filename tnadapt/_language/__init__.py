"""The language of adapters: notation, factors, initializers, specs and their validation, and specs bound to sites."""

from tnadapt._language.adapter import Adapter, host_entry
from tnadapt._language.address import Address, Magnitude, Part, Slot
from tnadapt._language.count import FactorCount, ParamCount, count
from tnadapt._language.decomposition import Decomposition, hosvd, svd, t_svd, tensor_cur, tt_svd
from tnadapt._language.expected import expect_adapter, expect_params, expect_path
from tnadapt._language.factor import MAPS, Factor, Same, Start, frozen, same, trainable
from tnadapt._language.faults import MOST_AXES
from tnadapt._language.initializer import (
    HOST,
    HOST_PARTS,
    HOST_WEIGHTS,
    Initializer,
    constant,
    controlled_z,
    cyclic,
    host,
    identity,
    kaiming_normal,
    kaiming_uniform,
    normal,
    ones,
    orthogonal,
    rotary,
    row_norms,
    uniform,
    zeros,
)
from tnadapt._language.network import Group, Network, split_evenly
from tnadapt._language.notation import Axis, modes_of, text_of
from tnadapt._language.scale import Scale, over_rank, over_sqrt_rank, raw
from tnadapt._language.sizes import SizeRule, at_most, like, required
from tnadapt._language.spec import AdapterSpec
from tnadapt._language.terms import START, Node, Term, words_of
from tnadapt._language.wrappers import magnitude, masked, without_magnitude

__all__ = [
    "HOST",
    "HOST_PARTS",
    "HOST_WEIGHTS",
    "MAPS",
    "MOST_AXES",
    "START",
    "Adapter",
    "AdapterSpec",
    "Address",
    "Axis",
    "Decomposition",
    "Factor",
    "FactorCount",
    "Group",
    "Initializer",
    "Magnitude",
    "Network",
    "Node",
    "ParamCount",
    "Part",
    "Same",
    "Scale",
    "SizeRule",
    "Slot",
    "Start",
    "Term",
    "at_most",
    "constant",
    "controlled_z",
    "count",
    "cyclic",
    "expect_adapter",
    "expect_params",
    "expect_path",
    "frozen",
    "host",
    "host_entry",
    "hosvd",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "like",
    "magnitude",
    "masked",
    "modes_of",
    "normal",
    "ones",
    "orthogonal",
    "over_rank",
    "over_sqrt_rank",
    "raw",
    "required",
    "rotary",
    "row_norms",
    "same",
    "split_evenly",
    "svd",
    "t_svd",
    "tensor_cur",
    "text_of",
    "trainable",
    "tt_svd",
    "uniform",
    "without_magnitude",
    "words_of",
    "zeros",
]

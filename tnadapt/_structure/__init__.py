"""What follows from the structure of a network: rank bounds, generic rank, degrees of freedom, the exact LoRA form."""

from tnadapt._structure.environment import COUNTS, Environment, Piece, Unfolding, environments
from tnadapt._structure.fit import fit_rank
from tnadapt._structure.freedom import Freedom, degrees_of_freedom, first_gradients
from tnadapt._structure.lora import LoRA, check_exportable, exact_lora, join, shorten, to_lora
from tnadapt._structure.pairs import Pair, Side, pairs
from tnadapt._structure.rank import Cut, generic_rank, minimum_cut, rank_bound
from tnadapt._structure.row_products import RowProducts, row_products
from tnadapt._structure.step import KAPPA, Balanced, StepSize, balanced_rates, step_size

__all__ = [
    "COUNTS",
    "KAPPA",
    "Balanced",
    "Cut",
    "Environment",
    "Freedom",
    "LoRA",
    "Pair",
    "Piece",
    "RowProducts",
    "Side",
    "StepSize",
    "Unfolding",
    "balanced_rates",
    "check_exportable",
    "degrees_of_freedom",
    "environments",
    "exact_lora",
    "first_gradients",
    "fit_rank",
    "generic_rank",
    "join",
    "minimum_cut",
    "pairs",
    "rank_bound",
    "row_products",
    "shorten",
    "step_size",
    "to_lora",
]

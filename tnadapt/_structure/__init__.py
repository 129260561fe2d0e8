"""What follows from the structure of a network: rank bounds, generic rank, degrees of freedom, the exact LoRA form."""

from tnadapt._structure.fit import fit_rank
from tnadapt._structure.freedom import Freedom, degrees_of_freedom, first_gradients
from tnadapt._structure.lora import LoRA, check_exportable, exact_lora, join, shorten, to_lora
from tnadapt._structure.rank import Cut, generic_rank, minimum_cut, rank_bound
from tnadapt._structure.row_products import RowProducts, row_products

__all__ = [
    "Cut",
    "Freedom",
    "LoRA",
    "RowProducts",
    "check_exportable",
    "degrees_of_freedom",
    "exact_lora",
    "first_gradients",
    "fit_rank",
    "generic_rank",
    "join",
    "minimum_cut",
    "rank_bound",
    "row_products",
    "shorten",
    "to_lora",
]

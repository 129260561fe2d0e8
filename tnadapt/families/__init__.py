"""The published adapter methods, one short function each: a family is a function that returns a spec."""

from tnadapt.families._blocks import bora, btt, c3a, gralora, miss, monarch, mora
from tnadapt.families._circuit import quanta
from tnadapt.families._matrix import lora, lora_xs, mtlora, pissa, randlora, sharelora, tinylora, tlora, vera
from tnadapt.families._named import SpecLike as SpecLike
from tnadapt.families._named import spec_of as spec_of
from tnadapt.families._orthogonal import householder, quantum_peft
from tnadapt.families._product import abba, kadaptation, kradapter, krona, loha, lokr, superlora
from tnadapt.families._rotation import hra, oft, soda, svdiff
from tnadapt.families._t_product import lora_pt, tcurlora
from tnadapt.families._tensor import adaring, lorta, lotr, tera
from tnadapt.families._train import dota, fact_tt, loretta, lotr_tt, metatt, tt_lora
from tnadapt.families._tucker import cara, cp, craft, fact_tk, flora, tenslora

__all__ = [
    "abba",
    "adaring",
    "bora",
    "btt",
    "c3a",
    "cara",
    "cp",
    "craft",
    "dota",
    "fact_tk",
    "fact_tt",
    "flora",
    "gralora",
    "householder",
    "hra",
    "kadaptation",
    "kradapter",
    "krona",
    "loha",
    "lokr",
    "lora",
    "lora_pt",
    "lora_xs",
    "loretta",
    "lorta",
    "lotr",
    "lotr_tt",
    "metatt",
    "miss",
    "monarch",
    "mora",
    "mtlora",
    "oft",
    "pissa",
    "quanta",
    "quantum_peft",
    "randlora",
    "sharelora",
    "soda",
    "superlora",
    "svdiff",
    "tcurlora",
    "tenslora",
    "tera",
    "tinylora",
    "tlora",
    "tt_lora",
    "vera",
]

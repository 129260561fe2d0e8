"""The published adapter methods, one short function each: a family is a function that returns a spec."""

from tnadapt.families._blocks import btt, gralora, monarch, mora
from tnadapt.families._circuit import quanta
from tnadapt.families._gated import hira, losa, ssb, ssl
from tnadapt.families._inner import mtlora, triadaptlora
from tnadapt.families._matrix import lora, lora_xs, mtlora_tasks, pissa, randlora, tlora, vera
from tnadapt.families._named import SpecLike as SpecLike
from tnadapt.families._named import spec_of as spec_of
from tnadapt.families._orthogonal import householder, quantum_peft
from tnadapt.families._product import abba, kadaptation, krona, loha, lokr, superlora
from tnadapt.families._sums import bslora, nola, rasa
from tnadapt.families._t_product import lora_pt, tcurlora
from tnadapt.families._tensor import lorta, lotr, tera
from tnadapt.families._train import dota, fact_tt, loretta, lotr_tt, metatt, tt_lora
from tnadapt.families._tucker import cara, fact_tk, flora, tenslora

__all__ = [
    "abba",
    "bslora",
    "btt",
    "cara",
    "dota",
    "fact_tk",
    "fact_tt",
    "flora",
    "gralora",
    "hira",
    "householder",
    "kadaptation",
    "krona",
    "loha",
    "lokr",
    "lora",
    "lora_pt",
    "lora_xs",
    "loretta",
    "lorta",
    "losa",
    "lotr",
    "lotr_tt",
    "metatt",
    "monarch",
    "mora",
    "mtlora",
    "mtlora_tasks",
    "nola",
    "pissa",
    "quanta",
    "quantum_peft",
    "randlora",
    "rasa",
    "ssb",
    "ssl",
    "superlora",
    "tcurlora",
    "tenslora",
    "tera",
    "tlora",
    "triadaptlora",
    "tt_lora",
    "vera",
]

"""How docs/reference/families.md groups the families, and what each picture shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GROUPS", "Group"]


@dataclass(frozen=True)
class Group:
    """Families of one kind. `pictures` says in words what the picture of each shows."""

    name: str
    words: str
    pictures: Mapping[str, str]


GROUPS = (
    Group(
        "Low-rank pairs",
        "A pair of small matrices for each weight, or for each weight and task.",
        {
            "lora": "B and A joined by the bond r",
            "mtlora": "C between B and A",
            "mtlora_tasks": "a pair for each task",
            "pissa": "B and A joined by the bond r",
            "triadaptlora": "C between B and A",
        },
    ),
    Group(
        "Shared or frozen pairs",
        "Pairs that weights share, or frozen pairs with a few trained numbers between or beside them.",
        {
            "bslora": "the pair of a weight; the other terms have shared pairs",
            "lora_xs": "R between the frozen B and A",
            "nola": "V and b, then A0; the other term has U and a instead",
            "randlora": "frozen A and B with diagonals on r n and n in",
            "rasa": "the pair of a layer with a vector on its bond; the other term has the shared pair",
            "sharelora": "B and A joined by the bond r",
            "tinylora": "v and the frozen P between frozen B and A",
            "tlora": "C, B, A and a scalar",
            "vera": "frozen B and A, vectors on out and on the bond",
        },
    ),
    Group(
        "Entrywise products",
        "Two matrices multiplied entry by entry, so that a small update can have a high rank.",
        {
            "abba": "two pairs between out and in",
            "hira": "the host's weight on the modes of a pair",
            "kradapter": "U and V share the in mode",
            "loha": "two pairs between out and in",
            "losa": "the pattern of the host's weight on the modes of a pair",
        },
    ),
    Group(
        "CP tensors",
        "One factor for each mode, all on one bond.",
        {
            "cara": "five factors on one hyperedge",
            "cp": "five factors on one hyperedge",
            "lorta": "five factors on one hyperedge",
        },
    ),
    Group(
        "Tucker tensors",
        "A core with one factor for each mode.",
        {
            "craft": "frozen U, G, V with a trained matrix beside each mode",
            "fact_tk": "a core between out, in and the sites",
            "flora": "a core between out and in",
            "lotr": "A, the cores G of each site, B",
            "tenslora": "a core with four factors",
            "tera": "a frozen core, frozen factors, vectors on the bonds",
        },
    ),
    Group(
        "Tensor trains and rings",
        "Cores in a row, each joined to the next by a bond; a ring joins the last to the first.",
        {
            "adaring": "three cores in a ring, one with the layers",
            "dota": "three cores, each with an out and an in mode",
            "fact_tt": "a train of three cores",
            "loretta": "two trains joined by the bond r",
            "lotr_tt": "a train of five cores",
            "metatt": "a train over in, layer, kind and out",
            "tt_lora": "a train of six cores",
        },
    ),
    Group(
        "Kronecker products",
        "Both axes of the weight split in two, with a factor for each part.",
        {
            "kadaptation": "A beside u and v on the hyperedge n",
            "krona": "two matrices side by side",
            "lokr": "C beside A and B",
            "superlora": "two Tucker tensors side by side, one with the sites",
        },
    ),
    Group(
        "Products of tubes",
        "The product of tensors (t-product) that convolves along a third mode.",
        {
            "lora_pt": "U, S and V, their tubes joined to the layer by C",
            "tcurlora": "U between the frozen C and R, their tubes joined to the layer by J",
        },
    ),
    Group(
        "Blocks and tiles",
        "The weight cut into blocks, with a small network for each or one that all share.",
        {
            "bora": "A, S on both block modes, B",
            "btt": "R, then L over the blocks of the weight",
            "c3a": "c joined to the circulant pattern J",
            "gralora": "two factors that share both block modes",
            "miss": "D and a vector of ones",
            "monarch": "two factors that share both block modes",
            "mora": "M between two vectors of ones",
        },
    ),
    Group(
        "Circuits",
        "Small gates one after another on several wires.",
        {
            "quanta": "six gates on four wires",
            "quantum_peft": "two circuits of rotations and sign gates, joined by s",
        },
    ),
    Group(
        "Rotations and reflections",
        "Orthogonal maps, most of them of the host's own weight.",
        {
            "householder": "s between two reflections",
            "hra": "the host's weight, then reflections and their starts",
            "oft": "the host's weight and the rotations of its blocks",
            "soda": "the host's weight and three rotations; the other terms have the shifted spectrum, and W",
        },
    ),
    Group(
        "Scales of the host's weight",
        "A trained number for each row, column or singular value of the host's weight.",
        {
            "ssb": "the host's weight and a vector on either mode",
            "ssl": "the host's weight and a vector on its in mode",
            "svdiff": "d between the parts of the host's SVD",
        },
    ),
)

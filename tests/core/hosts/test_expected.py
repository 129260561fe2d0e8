"""What a function that asks for sites takes, and what it answers to anything else."""

import pytest

from tnadapt import Site, SiteError, find_host, grid
from tnadapt._hosts import expect_sites

SITES = grid(layers=2, kinds={"q": (4, 3)})


@pytest.mark.parametrize(
    "given", [SITES, list(SITES), dict.fromkeys(SITES), iter(SITES)], ids=lambda given: str(type(given))
)
def test_any_collection_of_sites_is_taken(given):
    assert expect_sites(given, "bind") == SITES


def test_one_site_is_taken_by_itself():
    assert expect_sites(SITES[0], "bind") == SITES[:1]


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (find_host("gpt2"), r"host\.sites\(\)"),
        ("q_proj", r"find_host\(name\)\.sites\(\)"),
        ({"q": (4, 3)}, r"sites_of\(shapes\)"),
        ([("q", (4, 3))], r"Write Site\('q', \(4, 3\)\)"),
        (["q"], r"Write Site\('q', \(out, in\)\)"),
        ([Site("q", (4, 3)), 3], r"Write \[Site\("),
        (3, r"Write \[Site\("),
    ],
)
def test_anything_else_is_answered_by_what_to_write(given, remedy):
    with pytest.raises(SiteError, match=rf"^bind: expected sites, got .*\n.*{remedy}"):
        expect_sites(given, "bind")

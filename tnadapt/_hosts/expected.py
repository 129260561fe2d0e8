"""Check arguments that should be sites. The error message says how to get sites from what was passed instead."""

from collections.abc import Iterable, Mapping

from tnadapt._errors import SiteError
from tnadapt._hosts.known import Host
from tnadapt._hosts.site import Site
from tnadapt._signature import mistake, told

__all__: list[str] = []

EXAMPLE = 'Site("layers.0.q_proj", (out, in))'


def expect_sites(given: object, where: str) -> tuple[Site, ...]:
    """Return the sites as a tuple; a single site is accepted. Raises SiteError for anything else, at `where`."""
    if isinstance(given, Site):
        return (given,)
    is_whole = isinstance(given, str | bytes | Host) or hasattr(given, "sites") or bool(_framework(given))
    if is_whole or not isinstance(given, Iterable):
        raise mistake(SiteError, where, "sites", told(given), _remedy(given))
    sites = tuple(given)
    if isinstance(given, Mapping) and any(isinstance(path, str) for path in sites):
        raise mistake(SiteError, where, "sites", told(given), "Make sites of the shapes first: sites_of(shapes).")
    for site in sites:
        if not isinstance(site, Site):
            raise mistake(SiteError, where, "sites", f"{told(site)} among them", _remedy_for_one(site))
    return sites


def expect_site(given: object, where: str) -> Site:
    """Return the site. Raises SiteError for anything else; `where` begins the message."""
    if isinstance(given, Site):
        return given
    raise mistake(SiteError, where, "a site or its path", told(given), "Pass one of adapter.sites, or its path.")


def _remedy(given: object) -> str:
    """Say what to write instead of a value that is not a collection of sites."""
    if isinstance(given, Host):
        return "Pass its sites: host.sites()."
    if hasattr(given, "sites"):
        return "Pass its sites: .sites."
    if _framework(given) == "torch":
        return "To adapt a torch module, call tnadapt_torch.attach(model, spec, target_modules=[...], rank=8)."
    if _framework(given) == "flax":
        return "To adapt an nnx module, call tnadapt_jax.nnx.attach(model, spec, target=[...], rank=8)."
    return f"Write [{EXAMPLE}], or take the sites of a host: find_host(name).sites()."


def _framework(given: object) -> str:
    """Return "torch" or "flax" for a module of that framework, and an empty string for anything else."""
    bases = {base.__module__.partition(".")[0] for base in type(given).__mro__ if base.__name__ == "Module"}
    return next(iter(bases & {"torch", "flax"}), "")


def _remedy_for_one(given: object) -> str:
    """Say what to write instead of an element that is not a site."""
    match given:
        case [str(path), [*sizes]] if all(isinstance(size, int) for size in sizes):
            return f"Write Site({path!r}, {tuple(sizes)})."
        case str():
            return f"Write Site({given!r}, (out, in)), or take the sites of a host: find_host(name).sites()."
        case _:
            return f"Write [{EXAMPLE}]."

"""The JAX binding of tnadapt: empty in this release; the binding comes with its own release step."""

__all__: list[str] = []

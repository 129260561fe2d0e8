"""Show the function where a module and its main function have one name, as in `tnadapt.count`.

The reader of the sources takes `tnadapt.count` for the module `tnadapt._language.count`, since it does not know that an
import of the function comes later. mkdocs.yml names this file.
"""

from __future__ import annotations

import griffe


class ShownNames(griffe.Extension):
    """Make the names of a package's public modules mean what they mean in Python."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader) -> None:
        """Visit the package and its public modules."""
        for face in (pkg, *(one for name, one in pkg.modules.items() if not name.startswith("_"))):
            for name, member in list(face.members.items()):
                if member.is_alias and not name.startswith("_"):
                    self._show(face, name)

    def _show(self, face: griffe.Module, name: str) -> None:
        try:
            target = face.members[name].final_target
        except griffe.AliasResolutionError:
            return  # a name of another package
        if target.is_module and name in target.members and target.name == name:
            face.members[name] = griffe.Alias(name, target.members[name], parent=face)

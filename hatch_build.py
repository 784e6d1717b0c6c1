"""Puts NiiVue into the package when it is built or installed from source, with the licence notices that lie there.

Without a network the package is built all the same; ``medcontext view`` then says how to fetch NiiVue.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NiiVueHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        sys.path.insert(0, str(root / "src"))
        from medcontext.errors import MedContextError
        from medcontext.viewer import niivue

        try:
            file = niivue.FILE if niivue.FILE.is_file() else niivue.fetch()
            build_data["artifacts"].append(f"/{file.relative_to(root).as_posix()}")
        except MedContextError as error:
            self.app.display_warning(f"Built without the viewer's NiiVue. {error}")

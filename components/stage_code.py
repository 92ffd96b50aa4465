"""Which files of components/ the result of a stage depends on: what its module imports, and what that imports, plumbing left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from components.errors import UserError

# Plumbing that changes how bytes are carried, not which bytes: formats carry versions of their own.
NOT_RESULTS = {"config", "layout", "files", "tracking", "chain", "errors", "failpoints", "locks", "reporting", "stage_code", "storage"}
IMPORT = re.compile(r"^[ \t]*((?:from|import)[ \t][^(\n]*(?:\([^)]*\))?)", re.MULTILINE)


def imports(path: Path) -> ast.Module:
    """The import statements of a file. Its whole text is parsed only where they cannot be told from their lines alone (a sentence that
    begins with "from"): all the files of the chain take a tenth of a second so, and every run asks. Raises UserError."""
    try:
        text = path.read_text()
        try:
            return ast.parse("\n".join(match[1] for match in IMPORT.finditer(text) if "components" in match[1]))
        except SyntaxError:
            return ast.parse(text)
    except (SyntaxError, ValueError) as error:  # the last: bytes that are no text
        raise UserError(f"{path} cannot be read as Python: {error}. Mend it, then run again") from error


def of(stage: str, root: Path) -> list[str]:
    """Paths below `root`, in order: the import closure of the stage's one module. Raises UserError."""
    seen: set[str] = set()
    queue = [f"components/stages/{stage}.py"]
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.walk(imports(root / path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                parts = name.split(".")
                candidate = "/".join(parts) + ".py"
                if parts[0] == "components" and len(parts) > 1 and parts[1] not in NOT_RESULTS and (root / candidate).is_file():
                    queue.append(candidate)
    return sorted(seen)

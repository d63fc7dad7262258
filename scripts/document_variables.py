"""Writes the pages of the modules' variables from their variables.tf; with --check it only says whether they are so."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import hcl2

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "terraform": "docs/variables.md",
    "terraform/sagemaker": "docs/sagemaker-variables.md",
    "terraform/ray": "docs/ray-variables.md",
}
"""Module → the page of its variables."""
HEADS = {
    "terraform": """\
# Terraform's variables

`scripts/document_variables.py` writes this page from `terraform/variables.tf`; `make check` refuses one that is
not current. What is trained stands in the run file ([run-file.md](run-file.md)); these say where, for how long and for
whom. Each goes into `terraform.tfvars`. What is refused is refused by `terraform plan`, before anything is created.
""",
    "terraform/sagemaker": """\
# Variables of `terraform/sagemaker`

`scripts/document_variables.py` writes this page from `terraform/sagemaker/variables.tf`; `make check` refuses one that
is not current. How a run is trained stands in its run file ([sagemaker.md](sagemaker.md)); these say what jobs find.
""",
    "terraform/ray": """\
# Variables of `terraform/ray`

`scripts/document_variables.py` writes this page from `terraform/ray/variables.tf`; `make check` refuses one that is not
current. What machines there are stands in the cluster file ([ray.md](ray.md)); these say what they find.
""",
}


def variables(module: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and block of each, in the file's order."""
    with (REPOSITORY / module / "variables.tf").open() as file:
        blocks = hcl2.load(file)["variable"]
    return [(json.loads(name), block) for found in blocks for name, block in found.items()]


def plain(value: Any) -> Any:
    """A value as Terraform would print it: strings come with their quotes, expressions within ``${}``."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str) and value.startswith('"'):
        return value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return value.removeprefix("${").removesuffix("}") if isinstance(value, str) else value


def section(name: str, block: dict[str, Any]) -> str:
    default = f"`{json.dumps(plain(block['default']))}`" if "default" in block else "none: it has to be given"
    lines = [f"## {name}", "", str(plain(block["description"])), ""]
    lines += [f"- type: `{plain(block['type'])}`", f"- default: {default}"]
    refused = [plain(found["error_message"]).removeprefix(f"{name}: ") for found in block.get("validation", ())]
    # In the place of what Terraform will put in: the values that are refused.
    lines += [f"- refused with: {re.sub(r'[$][{][^}]*[}]', '…', message)}" for message in refused]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    wrong = 0
    for module, name in PAGES.items():
        page = "\n".join([HEADS[module], *(section(name, block) for name, block in variables(module))])
        path = REPOSITORY / name
        if arguments != ["--check"]:
            path.write_text(page)
        elif not path.exists() or path.read_text() != page:
            print(f"{name} is not what {module}/variables.tf says: run {Path(__file__).name}")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

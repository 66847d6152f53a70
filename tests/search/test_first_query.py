"""What a first query of a fresh process loads beside the model."""

import json
import subprocess
import sys
from pathlib import Path

import gradindex

SCRIPT = """
import json, sys
import gradindex

(result,) = gradindex.open(sys.argv[1], device="cpu").query(sys.argv[2], k=3)
print(json.dumps({"ids": result.ids, "modules": sorted(sys.modules)}))
"""
UNUSED = {"zarr", "faiss", "pandas", "pyarrow", "datasets", "ray", "fastapi"}


def test_a_query_of_few_pictures_loads_no_library_that_it_does_not_use(
    tmp_path: Path, model: Path, pictures: Path, queries: list[Path]
) -> None:
    """Not zarr, which takes as long to import as all of gradindex, nor FAISS; same answer."""
    place = tmp_path / "idx"
    index = gradindex.build(place, model=model, data=pictures, timesteps=2, dim=64, device="cpu")
    command = [sys.executable, "-c", SCRIPT, str(place), str(queries[0])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["ids"] == index.query(queries[:1], k=3)[0].ids
    assert UNUSED.intersection(answer["modules"]) == set()

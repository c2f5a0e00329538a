"""Find a person in a folder of crops: python examples/find_person.py RUN CROPS QUERY"""

import sys
from pathlib import Path

from sagareid import Extractor

run, crops, query = sys.argv[1:]
extractor = Extractor.from_checkpoint(run)
paths = sorted(p for p in Path(crops).rglob("*") if p.suffix in (".jpg", ".png"))
similarity = extractor(paths, progress=True) @ extractor([query])[0]
for place in similarity.argsort(descending=True)[:5]:
    print(f"{similarity[place]:.3f}  {paths[place]}")

"""Find a person in a folder of crops: python examples/find_person.py RUN CROPS QUERY"""

import sys

import torch

from sagareid import Extractor
from sagareid.data.images import image_files

run, crops, query = sys.argv[1:]
extractor, listing = Extractor.from_checkpoint(run), image_files(crops)
batches = list(extractor.iterate(listing.images))
paths = [listing.images[place] for batch in batches for place in batch.indices]
similarity = torch.cat([batch.features for batch in batches]) @ extractor([query])[0]
for place in similarity.argsort(descending=True)[:5]:
    print(f"{similarity[place]:.3f}  {paths[place]}")
for text in filter(None, [str(listing), *(text for batch in batches for text in batch.unreadable.values())]):
    print(text, file=sys.stderr)

"""Find a person in a folder of crops: python examples/find_person.py RUN CROPS QUERY"""

import os
import sys

import torch

from sagareid import Extractor
from sagareid.data.images import UnreadableImage, image_files

run, crops, query = sys.argv[1:]
extractor, listing = Extractor.from_checkpoint(run), image_files(crops)
try:
    wanted = extractor([query])[0]
except UnreadableImage as error:
    sys.exit(f"error: {error}")
batches = list(extractor.iterate(listing.images))
paths = [listing.images[place] for batch in batches for place in batch.indices]
unreadable = [text for batch in batches for text in batch.unreadable.values()]
if paths:
    similarity = torch.cat([batch.features for batch in batches]) @ wanted
    others = [place for place in similarity.argsort(descending=True) if not os.path.samefile(paths[place], query)]
    for place in others[:5]:
        print(f"{similarity[place]:.3f}  {paths[place]}")
for text in filter(None, [str(listing), *unreadable]):
    print(text, file=sys.stderr)
print(f"{len(paths)} of {len(listing.images)} images were searched", file=sys.stderr)

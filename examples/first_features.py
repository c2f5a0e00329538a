"""Features of images by the model that ships, and how alike they are: python examples/first_features.py A.jpg B.jpg"""

import sys

from sagareid import Extractor

images = sys.argv[1:]
extractor = Extractor.from_pretrained("drawn-xs")  # or "hf-hub:ORG/MODEL", or the folder of a run
features = extractor(images)
print(features @ features.T)

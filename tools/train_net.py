#!/usr/bin/env python
"""Train and evaluate: FastReID's train_net.py, with the stages that a config lists.

python tools/train_net.py --config-file configs/SAGA/occ_duke.yml
python tools/train_net.py --config-file configs/SAGA/occ_duke.yml --stage anchors --resume
python tools/train_net.py --config-file configs/SAGA/occ_duke.yml --eval-only MODEL.WEIGHTS run/model_final.pth
"""

from sagareid.engine.main import main

if __name__ == "__main__":
    main()

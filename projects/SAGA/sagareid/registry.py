"""Registries of the parts that a configuration names, beside FastReID's of backbones, heads, meta-architectures, data sets.

A part is a class, its registration, the keys that it adds and their check, in one file::

    @POOL_REGISTRY.register("top")
    class TopPool(LinearPool):
        def __init__(self, *, share): ...

        @classmethod
        def from_config(cls, cfg):                # the part of a configuration
            return cls(share=cfg.MODEL.SAGA.TOP_SHARE)

        @staticmethod
        def add_keys(cfg):                        # optional; called for every part before a file is read
            # Share of the patches that count.
            cfg.MODEL.SAGA.TOP_SHARE = 0.5

        @classmethod
        def check(cls, cfg):                      # optional; called where the configuration names the part
            if not 0 < cfg.MODEL.SAGA.TOP_SHARE <= 1:
                yield "MODEL.SAGA.TOP_SHARE is ...; expected above 0, up to 1"

The file is imported by `--import`, or by `modeling/__init__.py` for a part that ships. `add_keys` and `check` work for
FastReID's registries in the same way.
"""

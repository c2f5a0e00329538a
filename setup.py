"""Build of sagareid. With FastReID importable (``--no-build-isolation``) its Cython ranking is compiled in here;
in pip's isolated build it is not, and is compiled on first use instead (sagareid/evaluation/cython_ranking.py)."""

import importlib.util
import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SOURCE = Path("projects", "SAGA")
os.chdir(Path(__file__).resolve().parent)


def ranking_extensions():
    """Extensions of the host's ranking, or none where the host, Cython or numpy is not importable."""
    recipe = SOURCE / "sagareid" / "evaluation" / "cython_ranking.py"
    spec = importlib.util.spec_from_file_location("cython_ranking", recipe)
    ranking = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ranking)
    sources = ranking.host_sources()
    if not sources:
        return []
    folder = f"ranking_{ranking.source_hash(sources)}"
    try:
        extensions = ranking.make_extensions(
            sources, package=f"sagareid.evaluation.{folder}", build_dir=Path("build", folder)
        )
    except ImportError as missing:
        print(f"sagareid: {missing}; the Cython ranking will be compiled on first use")
        return []
    (recipe.parent / folder).mkdir(exist_ok=True)  # an editable install puts the modules beside the recipe
    return extensions


class BuildWithConfigs(build_py):
    """Put configs/ inside the package of a wheel, where sagareid/config_files.py finds it.

    The folder stays at the root of a checkout, which an editable install reads. A package_dir entry could say the same,
    but would make setuptools' editable install an import hook instead of a path.
    """

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "sagareid", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("configs", target)


def version():
    text = (SOURCE / "sagareid" / "version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


setup(
    name="sagareid",
    version=version(),
    description="SAGA-ReID, occlusion-robust person re-identification with CLIP, as a FastReID plug-in",
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11,<3.14",
    package_dir={"": str(SOURCE)},
    packages=find_packages(str(SOURCE)),
    package_data={"sagareid": ["assets/*", "assets/**/*"]},
    ext_modules=ranking_extensions(),
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["sagareid = sagareid.__main__:main"]},
    zip_safe=False,
    # Not here: fastreid. Its 1.4.0 metadata demands torch 1.13 and torchvision 0.14.1, which do not exist for these
    # Pythons, so no installer could resolve it. It is installed beside us: `pip install --no-deps fastreid==1.4.0`.
    install_requires=[
        # 2.10 is the first whose weights_only loading is safe: before 2.6 a file could run code through it
        # (CVE-2025-32434), before 2.10 corrupt memory (CVE-2026-24747).
        "torch>=2.10,<2.15",
        "torchvision>=0.25,<0.30",
        "open_clip_torch>=3.3,<4",
        "numpy>=2",
        "Pillow>=10",
        "safetensors>=0.4",
        "huggingface_hub>=0.30",  # models by name
        "yacs>=0.1.8",
        "filelock>=3.12",
        "tqdm>=4.60",
        # Export, and extracted features in shards.
        "onnx>=1.18",
        "onnxscript>=0.5",
        "onnxruntime>=1.22",
        "pyarrow>=19",
        # What fastreid 1.4.0 imports, since its own metadata cannot be used.
        "faiss-cpu>=1.8",
        "opencv-python-headless>=4.9",
        "gdown>=4.7",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "tensorboard>=2.14",
        "tabulate>=0.9",
        "termcolor>=2.4",
        "PyYAML>=6",
        "matplotlib>=3.8",
        # Compile the host's ranking on first use.
        "Cython>=3.0",
        "setuptools>=70",
    ],
    extras_require={
        # Galleries in Milvus (deploy/gallery/milvus_engine.py): 0.1 GB with pandas, which nobody else here needs.
        "milvus": ["pymilvus>=3.0,<4", "milvus-lite>=3.2,<4"],
        # The page of tools/serve.py and its API; from the versions on that the tests run with.
        "serve": ["fastapi>=0.165", "uvicorn>=0.54"],
        # Clients of WRITERS; requirements-test.txt and requirements-writers.txt pin them.
        "clearml": ["clearml>=2"],
        "mlflow": ["mlflow-skinny>=3"],
        "wandb": ["wandb>=0.19"],
    },
)

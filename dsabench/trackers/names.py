"""The trackers by name, and the other targets of an export, listed without importing any of them."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """A target that `dsabench export --to` names."""

    title: str
    packages: tuple[str, ...]
    """Packages that it needs."""

    view: str
    """The command that shows the export in the folder {out}."""


TRACKERS = {
    "tensorboard": Kind("TensorBoard", ("tensorboard",), "tensorboard --logdir {out}"),
    "wandb": Kind("Weights & Biases", ("wandb",), "wandb sync {out}/wandb/offline-run-*   (sends it to their server)"),
    "mlflow": Kind(
        "MLflow", ("mlflow", "sqlalchemy", "alembic"), "mlflow ui --backend-store-uri sqlite:///{out}/mlflow.db"
    ),
}

MODELS = "transformers"
"""The target that takes models, not numbers; see model_folders."""

TARGETS = {
    **TRACKERS,
    MODELS: Kind(
        "transformers", ("torch",), 'transformers.AutoModelForCausalLM.from_pretrained("{out}/RUN") in Python'
    ),
}
"""All that `--to` takes."""

"""One guarded server process, started by `rlhf up`: `python -m flows.servers.serve prefect|mlflow PORT`."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.servers.guard import Guard
from flows.servers.services import VIEW
from flows.servers.settings import HOST, find_root, login

FIGURES = ("win_rate_vs_sft", "kl")  # logged per policy as FIGURE/POLICY

# Prefect's page stores the login in the browser. The login is passed after the #, which browsers never send.
PREFECT_LOGIN = """<!doctype html><title>rlhf</title><script>
localStorage.setItem("prefect-password", btoa(location.hash.slice(1)));
location.replace("/deployments");
</script>"""

# The address of this page has logged the browser in. MLflow's own page fails if its address contains a login, so
# redirect to the address without it, at the path after the #. The first line keeps MLflow's assistant closed.
MLFLOW_LOGIN = """<!doctype html><title>rlhf</title><script>
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
location.replace(`http://${location.host}/${location.hash}`);
</script>"""


def prefect_app() -> Any:
    """Return Prefect's API and UI, configured by environment variables."""
    from prefect.server.api.server import create_app

    return create_app(final=True)


def mlflow_app(root: Path) -> Any:
    """Return MLflow's API and UI for the checkout's store, set up as `mlflow server` does it."""
    from mlflow.server import constants

    store = f"sqlite:///{root / 'mlflow.db'}"
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: store,
        constants.REGISTRY_STORE_URI_ENV_VAR: store,
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: (root / "mlartifacts").as_uri(),
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        "MLFLOW_TRACKING_URI": store,
    }
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(store, store, "mlflow-artifacts:/")
    _prepare_experiment(root)
    return app


def _prepare_experiment(root: Path) -> None:
    """Create the experiment if it is missing, set its kind (MLflow would guess) and save the view of its runs."""
    import yaml

    from tasks.runtime import tracking

    policy = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))["policy"]
    client = tracking.client()
    experiment = tracking.experiment_id(client)
    client.set_experiment_tag(experiment, "mlflow.experimentKind", "custom_model_development")
    client.set_experiment_tag(
        experiment, f"mlflow.sharedViewState.{VIEW}", view([*policy["online"], *policy["offline"]])
    )


def view(policies: Sequence[str]) -> str:
    """Return the layout of MLflow's table of runs as JSON: one column per figure and policy, wide enough to read."""
    names = [f"{figure}/{policy}" for figure in FIGURES for policy in policies]
    columns = [f"metrics.`{name}`" for name in names]
    # in pixels: 6 per letter, 24 for the cell's padding
    widths = {column: 24 + 6 * len(name) for column, name in zip(columns, names, strict=True)}
    return json.dumps({"selectedColumns": columns, "columnOrder": columns, "columnWidths": widths})


def main() -> None:
    """Run the server until the process is stopped."""
    import uvicorn

    part, port, root = sys.argv[1], int(sys.argv[2]), find_root()
    if part == "prefect":
        guarded = Guard(prefect_app(), port, PREFECT_LOGIN)
    else:
        guarded = Guard(mlflow_app(root), port, MLFLOW_LOGIN, login(root))
    uvicorn.run(guarded, host=HOST, port=port, log_level="warning", proxy_headers=False)


if __name__ == "__main__":
    main()

"""The MLflow parent run of a flow run: what was asked for, from which code, and what came out."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks import tracking
from tasks.params import Params


class ParentRun:
    """One MLflow run under which the runs of all stages of a flow run stand."""

    def __init__(self, name: str, params: Params, checkout: Path, flow_run_id: str) -> None:
        """Begin it; parameters are logged under their dotted keys."""
        self.client = tracking.client()
        self.experiment_id = tracking.experiment_id(self.client)
        tags = {**tracking.lineage_tags(checkout), "flow_run_id": flow_run_id, "kind": "pipeline"}
        run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        self.run_id = str(run.info.run_id)
        tracking.log_params(self.client, self.run_id, asdict(params))

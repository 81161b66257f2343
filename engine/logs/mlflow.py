"""The log as MLflow shows it:  mlflow ui --backend-store-uri sqlite:///results/prostate/sfda/mlflow/mlflow.db

A store in the run's own folder: a database of one experiment, called as the data set, with one run; and its pictures.
No server is asked, and no use is reported.
"""

import logging
import os
import re
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from engine.logs.base import LOGS, About, Entry, Log

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

AT_ONCE = 100  # parameters that MLflow takes in one batch
WAIT = 60  # seconds in which a program that reads the database lets go of it
MARK = "seconds"  # a column that has a value in every epoch: its steps are the epochs that were told


@LOGS.register()
class MLflow(Log):
    """A run in MLflow's database, which keeps its number after a kill.

    MLflow itself forgets no number and moves no store, so both is done in the database.
    """

    packages = ("mlflow", "sqlalchemy", "alembic")
    install = "mlflow==3.17.2"

    def __init__(self, folder: Path, about: About) -> None:
        super().__init__(folder, about)
        self.store, self.artifacts = folder / "mlflow.db", folder / "artifacts"

    def begin(self, done: int) -> int:
        if {*"%?"} & {*str(self.store.resolve())}:  # it would take them for parts of an address, and open another file
            raise OSError("MLflow opens no database whose path holds % or ?")
        if self.store.exists():
            try:
                return self._go_on(done)
            except Exception as fault:  # noqa: BLE001  of sqlite3, of SQLAlchemy, of MLflow, or another version's
                print(f"{self.store} cannot be gone on with ({fault}); it is made again.", file=sys.stderr)
                shutil.rmtree(self.folder)
        self._start()
        return 0

    def _client(self) -> "MlflowClient":
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before the import, which starts to report
        from mlflow.tracking import MlflowClient  # here, as few runs need it, it takes seconds, and may lack

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # of every table that is made
        return MlflowClient(tracking_uri=f"sqlite:///{self.store.resolve()}")

    def _start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.client = self._client()
        experiment = self.client.create_experiment(self.about.set_name, str(self.artifacts.resolve()))
        run = self.client.create_run(experiment, tags=dict(self.about.tags), run_name=self.about.name)
        self.run = run.info.run_id
        self._lie_at(self.folder)
        from mlflow.entities import Param

        words = [Param(name, value) for name, value in self.about.parameters.items()]
        for first in range(0, len(words), AT_ONCE):
            self.client.log_batch(self.run, params=words[first : first + AT_ONCE])

    def _go_on(self, done: int) -> int:
        """Opens the database that is there, forgets later epochs, and returns how many it holds."""
        with closing(sqlite3.connect(self.store, timeout=WAIT)) as database, database:
            ((self.run,),) = database.execute("SELECT run_uuid FROM runs")
            database.execute("DELETE FROM metrics WHERE step >= ?", [done])
            database.execute("DELETE FROM latest_metrics")
            columns = "key, value, timestamp, is_nan, run_uuid"  # in SQLite they are of the row with the largest step
            database.execute(
                f"INSERT INTO latest_metrics ({columns}, step) SELECT {columns}, MAX(step) FROM metrics GROUP BY key"
            )
        self._lie_at(self.folder)
        self.client = self._client()
        self.client.update_run(self.run, status="RUNNING")
        steps = sorted(each.step for each in self.client.get_metric_history(self.run, MARK))
        if steps != [*range(len(steps))]:
            raise ValueError(f"it holds the epochs {steps}")
        self._forget_pictures(len(steps))
        return len(steps)

    def _forget_pictures(self, first: int) -> None:
        """Removes the pictures of epochs from this one on."""
        for path in self.artifacts.glob(f"{self.run}/artifacts/images/*"):
            step = re.search(r"\Wstep\W(\d+)\W", path.name)
            if step and int(step[1]) >= first:
                path.unlink()

    def add(self, entry: Entry) -> None:
        from mlflow.entities import Metric

        moment = int(1000 * entry.time)
        if entry.picture:
            picture = Image.open(entry.picture)
            self.client.log_image(self.run, picture, key="val", step=entry.epoch, timestamp=moment)
        numbers = [Metric(name, value, moment, entry.epoch) for name, value in entry.values.items()]
        self.client.log_batch(self.run, metrics=numbers)  # last, and all at once: an epoch is there or not

    def end(self, place: Path) -> None:
        self.client.set_terminated(self.run, "FINISHED")
        self._lie_at(place)

    def _lie_at(self, place: Path) -> None:
        """Notes that the folder of the log lies, or will lie, at `place`, which is relative where --workdir is."""
        artifacts = place / self.artifacts.name
        with closing(sqlite3.connect(self.store, timeout=WAIT)) as database, database:
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id IN (SELECT experiment_id FROM runs)",
                [str(artifacts)],
            )
            database.execute(
                "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?",
                [str(artifacts / self.run / "artifacts"), self.run],
            )

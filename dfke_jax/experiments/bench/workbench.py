"""Where recipes do their work: data, teachers and stages that resume, for all seeds of a run."""

import contextlib
import dataclasses
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from dfke_jax import data
from dfke_jax.core.checkpoint import Checkpoints, alone, cache_directory, fingerprint, writable_directory
from dfke_jax.core.errors import CheckpointError, InputError
from dfke_jax.core.loop import run
from dfke_jax.core.mesh import device_mesh, replicate
from dfke_jax.core.method import HostMethod, Method
from dfke_jax.core.tracking import JsonLines, Prefixed, Tracker
from dfke_jax.core.types import Array, Key, PyTree
from dfke_jax.data.csv_files import file_of, is_csv, standard
from dfke_jax.experiments.bench.kept import once
from dfke_jax.experiments.bench.own import open_own
from dfke_jax.experiments.bench.settings import Settings, SupervisedSettings, network, own_model
from dfke_jax.experiments.bench.supervision import as_airbench, supervised_training
from dfke_jax.experiments.bench.timing import Account
from dfke_jax.nn import registry
from dfke_jax.nn.classifier import Classifier, Preprocessing, as_float
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import trained

S = TypeVar("S", bound=Settings)


class Answers:
    """What only answers (clones that vote, a model behind a defence), with the one method that measuring needs.

    Attributes:
      answer: images (B, H, W, C) -> (B, K); a pytree.
    """

    def __init__(self, answer: Any):
        self.answer = answer

    def __call__(self, images: Any) -> Any:
        return self.answer(images)

    def predict(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Answers (N, K) of any number of images, on the host."""
        parts = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        return np.concatenate([np.asarray(_answers(self.answer, part)) for part in parts])


@jax.jit
def _answers(answer: Callable, images: Any) -> Any:
    return answer(as_float(images))


class Workbench:
    """One run of one recipe.

    Every stage (a training, a synthesis) is saved under its name as it goes and when it is done, so that a run that
    was stopped at any moment goes on from the last saved chunk and ends in the same bits. Networks trained on real data
    (teachers and anchors) depend on data and budgets alone and are kept in the user's cache, where other recipes find them.

    Attributes:
      config: the recipe's settings. seeds: of this run.
      dataset: the data. data_dir: where it, and any other, is looked for.
      data_fingerprint: a hash of the images and labels of both splits and of the number of classes.
      out: the run's directory.
      mesh: the devices that samples and batches are split over; None for a single one.
      account: of the time it took; seconds: the same, by kind of stage, and ``compile``.
      own: the model of the user's own that is the teacher; None where it is trained.
      trackers: receive the metrics of all stages, besides ``metrics.jsonl``.
      notes: sentences that belong beside the figures.
    """

    def __init__(
        self,
        config: Settings,
        out: str | os.PathLike,
        *,
        data_dir: str | os.PathLike | None = None,
        progress: bool = True,
        devices: int | None = None,
        only: Sequence[int] | None = None,
        trackers: Sequence[Tracker] = (),
    ):
        self.config = config
        self.trackers = list(trackers)
        whole = list(range(config.seed, config.seed + config.seeds))
        self.seeds = whole if only is None else [seed for seed in whole if seed in only]
        if not self.seeds or (only is not None and len(self.seeds) != len(set(only))):
            raise InputError(f"seeds {list(only or ())} are not all among the run's, {whole[0]} to {whole[-1]}")
        self.out = writable_directory(out)
        self.progress = progress
        self.mesh = device_mesh(devices=jax.devices()[:devices]) if len(jax.devices()[:devices]) > 1 else None
        self.account = Account(self.out)
        self.seconds = self.account.seconds
        self.notes: list[str] = []
        self.data_dir = data_dir
        # recipes on tables name those as their data set, and say which images stand here meanwhile and where theirs come from
        self.dataset = data.load(getattr(config, "stand_in", config.dataset), data_dir=data_dir)
        self.dataset = dataclasses.replace(self.dataset, source=getattr(config, "source", self.dataset.source))
        train, test, classes = self.dataset.train.fingerprint, self.dataset.test.fingerprint, self.dataset.num_classes
        self.data_fingerprint = fingerprint([train, test, classes])
        self._train_fingerprint = fingerprint([train, classes])
        self._files = _hashes(dataclasses.asdict(config), data.tfds_directory(data_dir))
        self.own = None
        if isinstance(config, Settings) and (config.declare or own_model(config.teacher)):
            self.own = open_own(config, self.dataset)
        elif not self.dataset.labelled:
            known = getattr(config, "teacher", "network")
            raise InputError(
                f"{config.dataset} has no labels, and no {known} can be trained on it; name a network of your "
                "own by --teacher, or a model to attack by --victim"
            )
        if self.own is not None:
            if not self.dataset.labelled:
                self.dataset = self.dataset.with_classes(self.own.opened.num_classes)
            self._files.append(self.own.mark)
        self._train = None
        self._anchors: dict[tuple, Classifier] = {}
        self._samples: dict[str, np.ndarray] = {}
        self._seed_place, self._stages, self._stages_of_a_seed = 0, 0, 0

    def begin_seed(self, seed: int) -> None:
        """Says that stages are this seed's from now on: progress bars count them.

        How many there are is known once a seed has gone through all of them.
        """
        self._stages_of_a_seed = max(self._stages_of_a_seed, self._stages if self._seed_place else 0)
        self._seed_place, self._stages = self.seeds.index(seed) + 1, 0

    def _place(self, title: str) -> str:
        """What a progress bar says of a stage: which of how many seeds and stages it is."""
        if not self._seed_place:
            return title
        known = f"/{self._stages_of_a_seed}" if self._stages <= self._stages_of_a_seed else ""
        name = title.partition("/")[2] or title
        return f"seed {self._seed_place}/{len(self.seeds)}, stage {self._stages}{known}: {name}"

    def _settings(self, kind: type[S]) -> S:
        """The recipe's settings, which must be of a kind that has what is read."""
        if not isinstance(self.config, kind):
            raise TypeError(f"{type(self.config).__name__} is no {kind.__name__}, whose fields this needs")
        return self.config

    # ---- data and networks

    @property
    def train(self) -> tuple[Array, Array]:
        """Training images and labels, on the device."""
        if self._train is None:
            self._train = self.dataset.train.on_device()
        return self._train

    def network(self, name: str) -> Classifier:
        """A network by name for this data set, untrained.

        Raises:
          InputError: the data is a table, and the network no dense one.
        """
        schema, shape = self.dataset.schema, self.dataset.shape
        if schema is None:
            return network(name, self.dataset.num_classes, shape, self.config.fit)
        if not isinstance(registry.build(name, self.dataset.num_classes), MLP):
            raise InputError(
                f"{self.config.dataset} is a table of feature vectors, and {name} takes images; take a dense network: "
                "mlp_small, or mlp_H of H units"
            )
        made = network(name, self.dataset.num_classes, shape)
        mean, std = standard(schema)
        return dataclasses.replace(made, preprocessing=Preprocessing(mean=mean, std=std))

    def key(self, seed: int, name: str) -> Key:
        """The key of a stage: the seed's, folded with the stage's name."""
        return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)

    # ---- stages

    def stage(
        self,
        kind: str,
        name: str,
        seed: int,
        method: Method | HostMethod,
        steps: int,
        *,
        rows: int = 0,
        chunk: int | None = None,
        draws_as: str | None = None,
        members: int | None = None,
        callback: Callable[[int, PyTree, Any], None] | None = None,
    ) -> Any:
        """Runs a method to its end, or takes up where it was left; returns its last state.

        Args:
          kind: ``synthesis``, ``distillation``, ...: what the time is booked on.
          name: of the stage within its seed; checkpoints and metrics follow it.
          seed: the seed.
          method, steps, chunk: as for `run`.
          rows: samples per step, for the progress bar.
          draws_as: the stage whose key is used; this one's own by default.
          members: the method is a population of so many; its metrics are not tracked.
          callback: see `run`.
        """
        checkpoints = Checkpoints(
            self.out / "checkpoints" / f"seed{seed}" / name,
            config=self._decides(name, seed, steps, draws_as, members),
            keep=1,
        )
        key = self.key(seed, draws_as or name)
        if members is not None:
            key = jax.random.split(key, members)
        track = members is None
        return self._run(
            kind, f"seed{seed}/{name}", key, method, steps, checkpoints, rows, chunk, track=track, callback=callback
        )

    def once(self, name: str, seed: int, make: Callable[[], Any], *decides: Any) -> Any:
        """What `make()` returns, kept in the run's directory: a run that is taken up again reads it.

        For what is no stage: figures, distances, whatever is made on the host. Numbers and arrays come
        back to the bit, sequences as lists; see `dfke_jax.experiments.bench.kept.once`.

        Args:
          name: of the value within its seed. seed: the seed. make: called where there is none yet.
          decides: what it depends on besides settings, data, name and seed; JSON-able.

        Raises:
          CheckpointError: the value was made of other settings or data.
        """
        path = self.out / "kept" / f"seed{seed}" / f"{name}.npz"
        return once(path, self._decides(name, seed, *decides), make)

    def _decides(self, name: str, seed: int, *more: Any) -> str:
        """Fingerprint of all that a stage or a kept value depends on."""
        return fingerprint([dataclasses.asdict(self.config), self.data_fingerprint, self._files, name, seed, *more])

    def _run(
        self, kind, title, key, method, steps, checkpoints, rows, chunk, *, track, callback=None, spent=lambda _: None
    ) -> PyTree:
        done = checkpoints.latest == steps
        self._stages += 1
        began = last = time.perf_counter()

        def beat(step: int, state: PyTree, metrics: Any) -> None:
            nonlocal last
            now = time.perf_counter()
            spent(now - last)
            last = now
            self.account.write("" if kind == "anchors" else title, **{kind: now - began})
            if callback is not None:
                callback(step, state, metrics)

        chunk = min(steps, chunk or max(1, min(500, steps // 10)))
        # On CPU a batch of 64 is not worth splitting: training a classifier is faster on one device with all its threads.
        mesh = self.mesh if kind == "synthesis" or jax.default_backend() != "cpu" else None
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            if mesh:
                method, key = replicate((method, key), mesh)
            result = run(
                method,
                key,
                steps,
                chunk=chunk,
                checkpoints=checkpoints,
                every=1 if kind == "synthesis" else max(1, -(-steps // chunk) // 5),
                resume=True,
                trackers=self._trackers(f"{title}/") if track and not done else (),
                callback=beat,
                progress=self._place(title) if self.progress and not done else None,
                rows_per_step=rows,
                unit="images" if rows else "steps",
            )
        self.seconds[kind] = self.seconds.get(kind, 0.0) + result.seconds
        self.seconds["compile"] += result.compile_seconds
        if kind != "anchors":  # networks of the cache, which have an account of their own
            self.account.stages[title] = self.account.stages.get(title, 0.0) + result.seconds
        self.account.write()
        return jax.device_put(result.state, jax.devices()[0]) if mesh else result.state

    def _trackers(self, prefix: str) -> list[Tracker]:
        """Where a stage's metrics go: the run's file, and what else was asked for."""
        file = JsonLines(self.out / "metrics.jsonl", prefix=prefix)
        return [file, *(Prefixed(tracker, prefix) for tracker in self.trackers)]

    @contextlib.contextmanager
    def clock(self, kind: str) -> Iterator[None]:
        """Books the time of a block on a kind of work."""
        began = time.perf_counter()
        yield
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - began
        self.account.write()

    # ---- networks trained on real data

    def cached(
        self, what: str, seed: int, classifier: Classifier, method: Method, steps: int, description: list
    ) -> Classifier:
        """A network trained on real data: from the user's cache, or trained and put there.

        Args:
          what: kind of network, of which its key and its place in the cache are made. seed: the seed.
          classifier: untrained. method, steps: how it is trained.
          description: everything that decides it beside data, kind, seed and precision; JSON-able.
        """
        mark = fingerprint(
            [what, seed, self._train_fingerprint, description, jax.__version__]
            + [c for c in (self.config.precision,) if c != "float32"]
        )
        if (what, mark) not in self._anchors:
            place = writable_directory(cache_directory() / "networks" / f"{what}-{mark}")
            asked = time.perf_counter()
            with alone(place), self._blaming(place), contextlib.ExitStack() as stack:
                waited = time.perf_counter() - asked
                checkpoints = Checkpoints(place, config=mark, keep=1)
                had = checkpoints.latest is not None
                spent = stack.enter_context(self.account.network(place, had=had, waited=waited))
                state = self._run(
                    "anchors",
                    f"seed{seed}/{what}",
                    self.key(seed, what),
                    method,
                    steps,
                    checkpoints,
                    0,
                    None,
                    track=False,
                    spent=spent,
                )
            self._anchors[what, mark] = trained(classifier, state)
        return self._anchors[what, mark]

    @contextlib.contextmanager
    def _blaming(self, place: os.PathLike) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{error} (remove {place} to train that network again)") from error

    def supervised(self, what: str, name: str, seed: int) -> Classifier:
        """A network by name trained by cross-entropy on the real training set, with the teacher's budget."""
        c = self._settings(SupervisedSettings)
        images, labels = self.train
        budget = {"steps": c.teacher_steps, "batch_size": c.teacher_batch, "learning_rate": c.teacher_learning_rate}
        classifier = self.network(name)
        method = supervised_training(c, classifier, images, labels)
        description = [name, budget, c.teacher_augmentation, c.fit]
        description += ["airbench"] * as_airbench(c, classifier)
        return self.cached(what, seed, classifier, method, c.teacher_steps, description)

    def teacher(self, seed: int) -> Classifier:
        """The seed's teacher: cross-entropy on the real training set; or the user's own, the same for every seed."""
        if self.own is not None:
            return self.own.teacher
        return self.supervised("teacher", self.config.teacher, seed)

    @property
    def supervised_budget(self) -> dict[str, int]:
        """What a teacher used, for its row: see `Arm.budget`."""
        return {"real_samples": len(self.dataset.train), "training_steps": self.config.teacher_steps}

    def close(self) -> None:
        """Ends what was started to ask a model of the user's own."""
        if self.own is not None:
            self.own.opened.close()

    # ---- pictures

    def keep_samples(self, name: str, images: Array | np.ndarray, labels: Array | np.ndarray) -> None:
        """Keeps up to ten samples of each class, for the report; rows of a table are no pictures."""
        if self.dataset.schema is not None:
            return
        labels = np.asarray(labels)
        rows = np.concatenate([np.flatnonzero(labels == k)[:10] for k in range(self.dataset.num_classes)])
        self._samples[name] = np.round(np.clip(np.asarray(images[rows]), 0, 1) * 255).astype(np.uint8)
        self._samples[f"{name}_labels"] = labels[rows]
        np.savez_compressed(self.out / "samples.npz", **self._samples)  # pyright: ignore[reportArgumentType]

    # ---- models

    def keep_model(self, name: str, network: Classifier, seed: int) -> None:
        """Keeps a network whole, for `dfke_jax.load` and every command: ``models/NAME`` in the run's directory."""
        made_by = {"run": str(self.out), "arm": name, "seed": seed, "settings": type(self.config).__name__}
        network.save(self.out / "models" / name, made_by=made_by, overwrite=True)


def _hashes(settings: Any, root: Path) -> list[str]:
    """Of the files and folders of data sets that settings name: a path says nothing of what it holds."""
    from dfke_jax.data.files import holds_classes

    if isinstance(settings, str) and settings and holds_classes(Path(settings).expanduser()):
        return [_hash_of_folder(Path(settings).expanduser())]
    if isinstance(settings, dict):
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        return sorted({found for value in settings for found in _hashes(value, root)})
    if not isinstance(settings, str) or not settings:
        return []
    named = settings.endswith(".npz") or is_csv(settings)
    path = Path(file_of(settings) if named else root / f"{settings}.npz").expanduser()
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:16]] if path.is_file() else []


def _hash_of_folder(folder: Path) -> str:
    """Of the names and contents of all files in it."""
    inside = sorted(file for file in folder.rglob("*") if file.is_file())
    found = [[str(file.relative_to(folder)), hashlib.sha256(file.read_bytes()).hexdigest()] for file in inside]
    return fingerprint(found)


__all__ = ["Answers", "Workbench"]

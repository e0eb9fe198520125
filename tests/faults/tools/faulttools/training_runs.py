"""A training by the command line that something happens to, and that is then started again."""

import json
import shutil
import signal

from faulttools.tally import Different

MODULES = [
    *("torch", "torch._dynamo", "torch.utils.serialization", "numpy.ma", "rich.console", "faulttools.runs"),
    *("returnn_hydra.cli", "returnn_hydra.tasks.train", "returnn_hydra.tasks.job", "returnn_hydra.data.embedded"),
    *("returnn_hydra.data.augment", "returnn_hydra.data.postprocessing", "returnn_hydra.models.blstm"),
    *("returnn_hydra.models.conformer", "returnn_hydra.steps.cross_entropy", "returnn_hydra.steps.posteriors"),
    *("returnn_hydra.callbacks.hdf", "returnn_hydra.callbacks.log_lines", "returnn_hydra.callbacks.progress"),
]
"""What a run imports, so that its process has to do nothing but the run."""


class Runs:
    """The same training again and again, and what an undisturbed run of it leaves."""

    def __init__(self, zygote, parent, words):
        self.zygote = zygote
        self.folder = parent / "run"
        self.undisturbed = parent / "undisturbed"
        self.words = [*words, f"outputs={parent}", "name=run"]
        done = self.run()
        assert done.exit == 0, done.output
        self.operations = done.operations
        self.seconds = done.seconds
        self.expected = self.result()
        self.folder.rename(self.undisturbed)
        has_workers = any("num_workers" in word for word in words)
        assert f"worker processes: {'yes' if has_workers else 'no'}" in done.output

    def run(self, **fault):
        return self.zygote.command(self.words, self.folder, limit=300, **fault)

    def result(self):
        folder = self.folder
        records = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        epochs = [[record[key] for key in ("epoch", "learning_rate", "step", "scores")] for record in records]
        files = {path.name: path.read_bytes() for path in (folder / "checkpoints").glob("*.pt")}
        assert json.loads((folder / "result.json").read_text())["status"] == "done"
        return {"epochs": epochs, "files": files}

    def finish(self, broken):
        """Start again until it is done, and compare."""
        again = self.run()
        assert again.exit == 0, (broken, again)
        assert "DAMAGED" not in broken.output + again.output
        assert broken.orphans == again.orphans == 0, (broken, again)
        self.compare(again)
        shutil.rmtree(self.folder)

    def compare(self, again):
        """Raise Different unless the finished run is the undisturbed one."""
        found = self.result()
        if found["epochs"] != self.expected["epochs"]:
            raise Different(f"other scores, learning rates or steps: {again}")
        differing = [file for file, data in self.expected["files"].items() if found["files"].get(file) != data]
        if differing:
            raise Different(f"other bytes in {differing}: {again}")

    def clear(self):
        """What a case that failed may have left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self, at, kind):
        self.clear()
        broken = self.run(at=at, kind=kind)
        assert broken.exit == -signal.SIGKILL, broken
        self.finish(broken)

    def kill_again(self, at, kind):
        """The same run dies once more, before it is done."""
        broken = self.run(at=at, kind=kind)
        assert broken.exit == -signal.SIGKILL, broken
        assert "DAMAGED" not in broken.output
        assert broken.orphans == 0, broken

    def starve(self, step):
        """A run that may take only so much memory; returns its exit code."""
        self.clear()
        extra = (1 << 20) * (1 + step * step // 5)
        broken = self.run(before=("faulttools.runs:limit_memory", {"extra_bytes": extra}))
        self.finish(broken)
        return broken.exit

    def refuse(self, at, code, sticky):
        self.clear()
        broken = self.run(at=at, kind=code, sticky=sticky)
        assert broken.exit in (0, 74), broken
        assert broken.exit == 0 or f"({code})" in broken.output, broken
        self.finish(broken)

    def damage(self, file, change):
        """Damage a file of the finished run: the next start says so, and trains again what is lost."""
        self.clear()
        shutil.copytree(self.undisturbed, self.folder)
        path = self.folder / file
        data = path.read_bytes()
        changed = change(data)
        path.unlink()
        if changed is not None:
            path.write_bytes(changed)
        again = self.run()
        assert again.exit == 0, again
        assert "DAMAGED" in again.output, again
        assert path.name in again.output, again
        self.compare(again)

    def stop(self, number, after, code):
        """A signal after so many seconds; returns whether the run had something to save."""
        self.clear()
        broken = self.run(signals=[(after, number)])
        if not broken.sent:  # it was faster
            assert broken.exit == 0
            return False
        in_start_up = broken.exit == -number and "Start epoch" not in broken.output  # before the handlers
        assert broken.exit in (code, 0) or in_start_up, broken
        assert broken.seconds - broken.sent[0] < 5 or broken.exit == 0
        self.finish(broken)
        return broken.exit == code

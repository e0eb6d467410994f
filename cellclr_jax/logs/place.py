"""Where a run's logs are written: its work directory, or beside it where that is a bucket."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from etils import epath


def is_local(path: epath.Path) -> bool:
    """Whether a path lies in a file system of this machine."""
    return "://" not in str(path)


class Place:
    """A folder that files can be appended to.

    Args:
      workdir: of the run. What lies in a bucket (gs://…) cannot be appended to: files are written
        into a temporary folder and copied there whole.
      taken_over: names of files that go on where an earlier call of the run left them.

    Attributes:
      workdir: as given.
      folder: of this machine, the work directory itself where that is one.
    """

    def __init__(self, workdir: epath.Path, taken_over: Iterable[str]) -> None:
        self.workdir = workdir
        if is_local(workdir):
            self.folder = Path(workdir)
            return
        self.folder = Path(tempfile.mkdtemp(prefix="cellclr_"))
        for name in taken_over:
            if (workdir / name).exists():
                (self.folder / name).write_bytes((workdir / name).read_bytes())

    def publish(self, names: Iterable[str]) -> None:
        """Copies files and the files of folders to the bucket; nothing where there is none."""
        if is_local(self.workdir):
            return
        for name in names:
            path = self.folder / name
            for source in sorted(path.iterdir()) if path.is_dir() else [path]:
                target = self.workdir / source.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())

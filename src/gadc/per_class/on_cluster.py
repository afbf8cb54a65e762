"""Many classes at once on a cluster, each in one task."""

from collections.abc import Iterable

from gadc.cluster.tasks import Cluster, Task
from gadc.per_class.selection import ClassTask
from gadc.per_class.workers import Done, select_named


def select_classes_on(
    cluster: Cluster, tasks: Iterable[tuple[int, ClassTask]], done: Done, *, device: str
) -> None:
    """Select from every class as `select_classes` does, with the same numbers.

    The features of a class travel with its task: only this process needs their files.

    Args:
        cluster: Where.
        tasks: Numbered classes, made one by one as they are needed.
        done: Called in this process.
        device: `cpu`, or `cuda` for a GPU per task.

    Raises:
        GadcError: The error of a class, with its name, or of the cluster; see `Cluster.run`.
    """
    named = (Task(label, f"class {task.name!r}", task) for label, task in tasks)
    cluster.run(select_named, named, done, device=device)

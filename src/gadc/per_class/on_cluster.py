"""Many classes at once on a cluster, each in one task."""

from collections.abc import Iterable, Iterator

from gadc.cluster.tasks import Cluster, Task
from gadc.per_class.selection import ClassTask, is_partitioned
from gadc.per_class.workers import Done, select_named


def select_classes_on(
    cluster: Cluster, tasks: Iterable[tuple[int, ClassTask]], done: Done, *, device: str
) -> None:
    """Select from every class as `select_classes` does, with the same numbers.

    The features of a class travel with its task: only this process needs their files. Classes that
    are searched in cells are too large for that, and are searched here.

    Args:
        cluster: Where.
        tasks: Numbered classes, made one by one as they are needed.
        done: Called in this process.
        device: `cpu`, or `cuda` for a GPU per task.

    Raises:
        GadcError: The error of a class, with its name, or of the cluster; see `Cluster.run`.
    """

    def shipped() -> Iterator[Task[int, ClassTask]]:
        for label, task in tasks:
            if is_partitioned(
                task.settings, len(task.features), has_target=task.target is not None
            ):
                done(label, select_named(task))
            else:
                yield Task(label, f"class {task.name!r}", task)

    cluster.run(select_named, shipped(), done, device=device)

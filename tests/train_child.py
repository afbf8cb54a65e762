"""Training runs of one process, some of them killed: OUT IMAGES STEP ... (steps to be killed at).

Each run is a fork of this process, killed by SIGKILL in the middle of a step; the last one, after
all kills, ends by itself.
"""

import os
import signal
import sys
from pathlib import Path

from gadc.training.engine import Engine
from gadc.training.loop import train
from training_runs import tiny_config, tiny_images

N_STEPS = 40


def settings():  # type: ignore[no-untyped-def]
    return tiny_config(steps=N_STEPS, checkpoint_every=10, log_every=5, batch_size=5)


def run(out: Path, images: Path, kill_at: int | None) -> None:
    def step(engine: Engine, number: int, batch: object) -> object:
        found = original(engine, number, batch)  # type: ignore[arg-type]
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    original = Engine.step
    Engine.step = step  # type: ignore[method-assign, assignment]
    train(tiny_images(images), settings(), out, device="cpu")


if __name__ == "__main__":
    out, images = Path(sys.argv[1]), Path(sys.argv[2])
    for kill_at in map(int, sys.argv[3:]):
        child = os.fork()
        if child == 0:
            run(out, images, kill_at)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit("the run was not killed")
    run(out, images, None)

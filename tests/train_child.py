"""Training runs of one process: STRAIGHT KILLED IMAGES STEP ... (steps to be killed at).

Each killed run is a fork of this process, ended by SIGKILL in the middle of a step; the one after
all kills, and the one in a folder of its own, end by themselves.
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
    straight, out, images = map(Path, sys.argv[1:4])
    for kill_at in map(int, sys.argv[4:]):
        child = os.fork()
        if child == 0:
            run(out, images, kill_at)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit("the run was not killed")
    run(out, images, None)
    run(straight, images, None)

"""What the tests' processes are started with, and hand on to those that they start."""

import os
import signal

# One thread per test process: the tests run in parallel, and threads that wait for a busy core make
# small tensor operations a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Ray's workers give way to every other process: on a busy machine the tests would hardly get on.
os.environ.setdefault("RAY_worker_niceness", "0")
# Children of a shell's background jobs are deaf to Ctrl-C; the tests send it to their own.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

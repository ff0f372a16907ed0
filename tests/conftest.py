"""Before anything imports torch: one thread, so that tests beside other programs do not wait for spinning threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

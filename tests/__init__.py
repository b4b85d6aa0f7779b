"""Before anything is imported: no setting of the user's, or of the terminal's, decides how a test ends."""

import os

THEIRS = (
    "T2I_PATIENCE_SECONDS",
    "T2I_RESUME",
    "T2I_TRACEBACK",
    "T2I_WORK_DIR",
    "DVC_ROOT",
    "DVC_STAGE",
    "SHELL",  # DVC then takes /bin/sh, which in Debian stays between it and a stage
    "GIT_DIR",  # a hook of git's has them
    "GIT_INDEX_FILE",
    "GIT_WORK_TREE",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "TORCHELASTIC_RUN_ID",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_ENDPOINT",
    "HF_DATASETS_OFFLINE",
    "WANDB_MODE",
    "TQDM_DISABLE",
    "COLUMNS",
    "LINES",
    *(case(f"{kind}_proxy") for kind in ("http", "https", "all", "no") for case in (str.lower, str.upper)),
)

for name in THEIRS:
    os.environ.pop(name, None)
os.environ["HF_HUB_OFFLINE"] = "1"

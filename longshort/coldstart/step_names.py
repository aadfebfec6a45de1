"""The steps of the cold start, in order, and what each does. Imports nothing, so that `--help` answers at once."""

SFT = "sft"
STEP_TITLES = {
    "chunk": "cut traces into thoughts",
    "rollouts": "continue every prefix of every trace",
    "importance": "score every thought",
    "partition": "decide which thoughts stay long",
    "rewrite": "write the short messages anew, and verify them",
    "rows": "render both roles' training rows",
    SFT: "fine-tune both roles on their rows",
}
